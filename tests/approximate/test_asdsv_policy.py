"""A smaller policy network drafts for a larger one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specpolicy import ReverseProcess
from specpolicy.approximate.asdsv import AsdsvResult, AsdsvSampler, ThresholdVerifier, asdsv
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy


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
        chunk = target.predict_action(observation, sampler, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
        assert chunk.actions.shape == (2, 8, 3) and isinstance(chunk.result, AsdsvResult)
        counts.append(chunk.result.passes.tolist())
    # 4 steps alone, a first look, a pass for each draft of 4, 4, 9, 9, 9 steps; the last draft, of a single step, has
    # been looked at by then. The other network never agrees.
    assert counts == [[10, 10], [40, 40]]


def test_a_draft_beside_the_checkpoint_is_found(tmp_path: Path) -> None:
    policy(32).save_pretrained(tmp_path / "toy")
    policy(8).save_pretrained(tmp_path / "toy_draft")
    target = DiffusionPolicy.from_pretrained(tmp_path / "toy")
    fast = asdsv(target, 40, delta=math.inf)
    assert fast.exact is False and fast.process.num_steps == 40
    chunk = target.predict_action(
        {"object": np.zeros((1, 2, 14), np.float32)}, fast, [torch.Generator().manual_seed(1)]
    )
    assert chunk.result.passes.tolist() == [4]  # the first stage; the draft network makes the rest
    wide = asdsv(target, 40, delta=1e-4, draft=tmp_path / "toy")
    assert isinstance(wide.draft, DiffusionPolicy) and wide.draft.config.network["width"] == 32


def test_drafts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    policy(32).save_pretrained(tmp_path / "toy")
    target = DiffusionPolicy.from_pretrained(tmp_path / "toy")
    with pytest.raises(FileNotFoundError, match="distil one: specpolicy train"):
        asdsv(target, 40, delta=0.1)
    other = policy(8)
    other.action_normalizer.high.mul_(2)
    other.save_pretrained(tmp_path / "scaled")
    with pytest.raises(ValueError, match="action_normalizer: the draft network scales otherwise"):
        asdsv(target, 40, 0.1, tmp_path / "scaled")
    DiffusionPolicy(replace(policy(8).config, scheduler={"num_train_timesteps": 50})).save_pretrained(
        tmp_path / "shorter"
    )
    with pytest.raises(ValueError, match="scheduler: the draft network's is"):
        asdsv(target, 40, 0.1, tmp_path / "shorter")
    with pytest.raises(ValueError, match="not loaded from a checkpoint"):
        asdsv(policy(32), 40, 0.1)
