"""The shipped Square network, sampled speculatively, still has the distribution of its sequential chain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    FrozenDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ReverseProcess,
    SampleResult,
    SpeculativeSampler,
    samplers,
)
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.verifiers import AcceptedPrefix, DraftTargetGap, Verifier

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "square"


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def cond(policy: DiffusionPolicy) -> torch.Tensor:
    """Conditions from observations that the policy met in the simulator."""
    with np.load(Path(__file__).parent / "square_observations.npz") as stored:
        return policy.encode({key: stored[key] for key in stored.files})


def sample(
    policy: DiffusionPolicy,
    cond: torch.Tensor,
    sampler: SpeculativeSampler,
    batch: int,
) -> SampleResult:
    """A recorded result, its x̂0 evaluated afresh at the recorded states, so that no bookkeeping is trusted."""
    generator = torch.Generator().manual_seed(0)
    rows = cond[torch.arange(batch) % len(cond)]
    noise = torch.randn(batch, *policy.event_shape, generator=generator)
    result = sampler(policy, noise, cond=rows, generator=generator, record=True)
    assert result.trajectory is not None
    process = sampler.process.to("cpu", torch.float32)
    fresh = []
    with torch.no_grad():
        for step in range(process.num_steps):
            k, x = torch.full((batch,), step), result.trajectory[step]
            fresh.append(process.x0(x, policy(x, process.timesteps[k], rows), k))
    return replace(result, x0=torch.stack(fresh))


class AcceptsEverything(BlockVerifier):
    def judge(self, comparison: DraftTargetGap, uniform: torch.Tensor) -> AcceptedPrefix:
        return AcceptedPrefix(comparison.length, torch.zeros(len(uniform), dtype=torch.float64))


@pytest.mark.parametrize(
    ("steps", "drafter", "verifier", "window", "batch"),
    [
        (20, FreeDrafter(), BlockVerifier(), 12, 48),
        (20, FrozenDrafter(), ReflectionVerifier(), 12, 48),
        (100, FreeDrafter(), BlockVerifier(), 24, 16),
        (20, RecyclingDrafter(), ReflectionVerifier(), 19, 48),
    ],
)
def test_innovations_on_the_shipped_network(
    policy: DiffusionPolicy,
    cond: torch.Tensor,
    steps: int,
    drafter: Drafter,
    verifier: Verifier,
    window: int,
    batch: int,
) -> None:
    process = ReverseProcess.from_scheduler(policy.scheduler, steps)
    result = sample(policy, cond, SpeculativeSampler(process, drafter, verifier, window), batch)
    assert check_exactness(process, result).smallest > 1e-3


def test_accepting_everything_is_noticed_on_the_shipped_network(policy: DiffusionPolicy, cond: torch.Tensor) -> None:
    process = ReverseProcess.from_scheduler(policy.scheduler, 20)
    result = sample(policy, cond, SpeculativeSampler(process, FreeDrafter(), AcceptsEverything(), 12), 16)
    assert check_exactness(process, result).smallest < 1e-12


def test_free_block_needs_at_most_fourteen_passes(policy: DiffusionPolicy, cond: torch.Tensor) -> None:
    process = ReverseProcess.from_scheduler(policy.scheduler, 100)
    generator, some = torch.Generator().manual_seed(1), cond[::3]
    noise = torch.randn(len(some), *policy.event_shape, generator=generator)
    result = SpeculativeSampler(process)(policy, noise, cond=some, generator=generator)
    assert result.passes.double().mean() <= 14


def test_recycling_halves_them(policy: DiffusionPolicy, cond: torch.Tensor) -> None:
    verifier = ReflectionVerifier()
    wide = samplers.calibrated(policy, 100, verifier, window=99, drafter=RecyclingDrafter)
    generator, some = torch.Generator().manual_seed(1), cond[::3]
    noise = torch.randn(len(some), *policy.event_shape, generator=generator)
    assert wide(policy, noise, cond=some, generator=generator).passes.double().mean() <= 6.5


def test_the_checkpoint_is_what_its_card_says(policy: DiffusionPolicy) -> None:
    card = (CHECKPOINT / "README.md").read_text()
    parameters = sum(p.numel() for p in policy.network.parameters())
    assert f"{parameters:,}" in card
    assert (CHECKPOINT / "policy.safetensors").stat().st_size < 20e6
    assert policy.config.task == "square"
    assert (policy.config.n_obs_steps, policy.config.horizon, policy.config.n_action_steps) == (
        2,
        16,
        8,
    )
