"""Random streams that depend on the episode alone: not on batching, worker count or order."""

from __future__ import annotations

import numpy as np
import torch

EVALUATION_SEEDS = 100_000
"""First seed of an evaluation that only says how many it wants; demonstrations are recorded from 0 upwards."""

_DOMAIN = 0x5EED_9011C7  # keeps these streams apart from others made from the same seeds


def episode_generator(seed: int, repeat: int) -> torch.Generator:
    """The policy's own generator for one episode, on the CPU wherever the policy is: the same numbers on any device.

    All samplers draw from the same stream on the same ``(seed, repeat)``, so comparisons are paired in the noise as
    far as their draws correspond. torch's CPU generator keeps 32 bits of a seed: among ``n`` episodes two share a
    stream with probability about ``n² / 2³³`` (1 in 8000 for a thousand).

    Args:
        seed: seed of the initial state, non-negative.
        repeat: number of the repeat, non-negative.
    """
    state = np.random.SeedSequence([_DOMAIN, seed, repeat]).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(state[0]))
