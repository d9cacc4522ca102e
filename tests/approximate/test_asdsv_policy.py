"""A smaller policy network drafts for a larger one."""

from __future__ import annotations

import numpy as np
import torch

from specpolicy import ReverseProcess
from specpolicy.approximate import AsdsvResult, AsdsvSampler, ThresholdVerifier
from specpolicy.policies import DiffusionPolicy, PolicyConfig


def policy(width: int) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(
        PolicyConfig(
            task="square",
            observations={"object": 14},
            action_dim=3,
            network={"name": "mlp", "width": width, "blocks": 1, "embed": 16},
            scheduler={"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"},
        )
    ).eval()


def test_a_policy_acts_with_a_draft_network() -> None:
    target = policy(32)
    process = ReverseProcess.from_scheduler(target.scheduler, 40)
    observation = {"object": np.zeros((2, 2, 14), np.float32)}
    counts = []
    for draft in (policy(32), policy(8)):
        sampler = AsdsvSampler(process, draft, ThresholdVerifier(1e-4))
        chunk = target.act(observation, sampler, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
        assert chunk.actions.shape == (2, 8, 3) and isinstance(chunk.result, AsdsvResult)
        counts.append(chunk.result.passes.tolist())
    # 4 steps alone, a first look, a pass for each draft of 4, 4, 9, 9, 9 steps; the last draft, of a single step, has
    # been looked at by then. The other network never agrees.
    assert counts == [[10, 10], [40, 40]]
