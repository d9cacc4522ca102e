"""Policies sampled with cached action tokens."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_networks as tiny
import torch
from hydra.utils import instantiate

from specpolicy import SchedulerSampler, SequentialSampler, samplers
from specpolicy.approximate.specdiff.importance import CachingError
from specpolicy.approximate.specdiff.sampler import CachedResult, CachedSampler, specdiff
from specpolicy.config import compose

STEPS = 12


def noise(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 16, 3, generator=torch.Generator().manual_seed(5))


def cond(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 10, generator=torch.Generator().manual_seed(6))


def seeds(batch: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(batch)]


def test_ratio_zero_samples_what_the_sequential_sampler_does() -> None:
    policy = tiny.policy()
    plain = samplers.sequential(policy, STEPS)(policy, noise(), cond(), seeds(), record=True)
    result = specdiff(policy, STEPS, ratio=0.0)(policy, noise(), cond(), seeds(), record=True)
    torch.testing.assert_close(result.sample, plain.sample, rtol=1e-3, atol=1e-4)
    assert result.trajectory is not None and plain.trajectory is not None
    torch.testing.assert_close(result.trajectory, plain.trajectory, rtol=1e-3, atol=1e-4)
    assert (result.passes == STEPS + 2).all() and (result.evaluations == STEPS + 2).all()


def test_less_work_and_other_samples() -> None:
    policy = tiny.policy()
    plain = samplers.sequential(policy, STEPS)(policy, noise(), cond(), seeds())
    sampler = specdiff(policy, STEPS, ratio=0.75, speculative=1)
    result = sampler(policy, noise(), cond(), seeds())
    assert isinstance(result, CachedResult) and result.work is not None
    torch.testing.assert_close(result.work, torch.full((3,), 2 + (STEPS - 1) / 4))
    assert not torch.allclose(result.sample, plain.sample, atol=1e-3)
    assert not sampler.exact and "approximate" in repr(sampler)
    again = sampler(policy, noise(), cond(), seeds())
    assert torch.equal(again.sample, result.sample), "every call begins with an empty cache"


def test_a_chain_does_not_depend_on_its_neighbours() -> None:
    policy = tiny.policy()
    sampler = specdiff(policy, STEPS, ratio=0.6)
    together = sampler(policy, noise(), cond(), seeds())
    for row in range(3):
        part = slice(row, row + 1)
        alone = sampler(policy, noise()[part], cond()[part], seeds()[part])
        torch.testing.assert_close(alone.sample[0], together.sample[row], rtol=1e-3, atol=1e-4)


def test_few_step_solvers_work_as_well() -> None:
    policy = tiny.policy()
    few = specdiff(policy, 5, ratio=0.5, eta=0.0, speculative=1)
    assert isinstance(few.inner, SchedulerSampler)
    observation = {"object": np.zeros((2, 2, 5), np.float32)}
    chunk = policy.predict_action(observation, few, torch.Generator().manual_seed(0))
    assert chunk.actions.shape == (2, 8, 3) and chunk.result.passes.tolist() == [6, 6]
    plain = policy.predict_action(
        observation, specdiff(policy, 5, ratio=0.0, eta=0.0), torch.Generator().manual_seed(0)
    )
    ddim = policy.predict_action(observation, samplers.ddim(policy, 5), torch.Generator().manual_seed(0))
    np.testing.assert_allclose(plain.actions, ddim.actions, rtol=1e-3, atol=1e-4)


def test_the_preset_makes_a_sampler_for_transformers_alone() -> None:
    cfg = compose("rollout", ["sampler=specdiff", "sampler.ratio=0.25", "sampler.num_inference_steps=8"])
    make = instantiate(cfg.sampler)
    sampler = make(tiny.policy())
    assert isinstance(sampler, CachedSampler) and isinstance(sampler.inner, SequentialSampler)
    assert sampler.settings.ratio == 0.25 and sampler.inner.process.num_steps == 8
    for network in ({"network": "unet1d", "channels": [8, 16]}, {"network": "mlp", "width": 16}):
        with pytest.raises(CachingError, match=r"has no tokens to cache; .*policy=transformer"):
            make(tiny.policy(**network))
