"""The shipped camera policy for PushT: small, and it pushes the T from what it sees."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from specpolicy import BlockVerifier, FreeDrafter, ReverseProcess, SpeculativeSampler
from specpolicy.policies.checkpoint import read_seen_seeds
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.observations import ObservationHistory

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "pusht_image"
SEEDS = (300, 301)
"""Not among the demonstrations, nor among the seeds of its evaluation."""


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(CHECKPOINT)


def test_it_is_small_and_looks_at_nothing_but_the_image_and_the_finger(policy: DiffusionPolicy) -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 15 * 2**20
    assert policy.observations.shapes == {"image": (96, 96, 3), "agent_pos": (2,)}
    assert not read_seen_seeds(CHECKPOINT) & set(SEEDS)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="needs gym-pusht")
def test_it_pushes_the_t_and_encodes_two_frames_a_chunk(policy: DiffusionPolicy) -> None:
    from specpolicy_envs.pusht import PushTImageEnv

    process = ReverseProcess.from_scheduler(policy.scheduler, 100)
    sampler = SpeculativeSampler(process, FreeDrafter(), BlockVerifier(), window=24)
    env, scores = PushTImageEnv(), []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        observation, _ = env.reset(seed=seed)
        history, score, chunks, before = ObservationHistory(2, observation), 0.0, 0, policy.encoders.encoded
        for _ in range(37):
            window = {name: part[None] for name, part in history.window().items()}
            chunk = policy.predict_action(window, sampler, [generator])
            assert chunk.result.passes.max() < 40
            chunks += 1
            for action in chunk.actions[0]:
                observation, reward, done, *_ = env.step(action.astype(np.float32))
                history.add(observation)
                score += reward
                if done:
                    break
            if done:
                break
        assert policy.encoders.encoded - before <= 2 * chunks
        scores.append(score)
    assert np.mean(scores) > 0.7, scores
