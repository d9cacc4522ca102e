"""A policy is loaded, and its samplers are made, once a process."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from specpolicy.evaluation.comparison import CheckpointLoader
from specpolicy.policies.checkpoint import CheckpointError
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.samplers import sequential

MADE: list[str] = []


def counted(policy: Any) -> Any:
    MADE.append("sampler")
    return partial(sequential, num_inference_steps=10)(policy)


@pytest.fixture
def loader(tmp_path: Path) -> CheckpointLoader:
    MADE.clear()
    config = PolicyConfig(
        task="reach",
        observations={"position": 2},
        action_dim=2,
        network={"name": "mlp", "width": 8, "blocks": 1, "embed": 8, "timestep_dim": 8},
        scheduler={"num_train_timesteps": 10},
    )
    DiffusionPolicy(config).save_pretrained(tmp_path / "checkpoint")
    return CheckpointLoader(str(tmp_path / "checkpoint"), "reach", {"ddpm": counted})


def test_a_policy_is_loaded_and_a_sampler_made_once_a_process(loader: CheckpointLoader) -> None:
    pinned = loader.pinned()
    assert pinned() is pinned() and pinned().policy is loader().policy
    assert MADE == ["sampler"]
    elsewhere = pickle.loads(pickle.dumps(pinned))  # as in another process
    assert elsewhere == pinned and elsewhere().policy is not pinned().policy
    assert MADE == ["sampler"] * 2


def test_another_process_refuses_a_checkpoint_that_has_changed(loader: CheckpointLoader) -> None:
    pinned = pickle.dumps(loader.pinned())
    policy = loader().policy
    next(policy.parameters()).data.add_(1.0)  # type: ignore[attr-defined]
    policy.save_pretrained(loader.checkpoint)  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="is not the checkpoint that this run began with"):
        pickle.loads(pinned)()
