"""Chains whose last step has noise: a window may reach the end, but the step after it must still be in the chain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from mixtures import Mixture, chains, ddpm
from scipy import stats

from specpolicy import (
    AdaptiveWindow,
    BlockVerifier,
    FreeDrafter,
    FrozenDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    ReverseProcess,
    SequentialSampler,
    SpeculativeSampler,
)
from specpolicy.speculative.compiled.sampler import CompiledSampler
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.linear_chain import max_draft_lengths
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.verifiers import Verifier

STEPS = 5


def ddpm_end() -> tuple[ReverseProcess, Mixture]:
    """fixed_large with trailing spacing: the last timestep is above 0, where diffusers adds noise."""
    scheduler = DDPMScheduler(
        100, beta_schedule="squaredcos_cap_v2", variance_type="fixed_large", timestep_spacing="trailing"
    )
    return ReverseProcess.from_scheduler(scheduler, STEPS), broad(scheduler)


def ddim_trailing_end() -> tuple[ReverseProcess, Mixture]:
    """DDIM from a last timestep of 19 to the ᾱ of timestep 0."""
    scheduler = DDIMScheduler(
        100,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    return ReverseProcess.from_scheduler(scheduler, STEPS, eta=1.0), broad(scheduler)


def ddim_end() -> tuple[ReverseProcess, Mixture]:
    """Stable Diffusion's own settings: the last ᾱ is that of timestep 0, and the last timestep 1."""
    scheduler = DDIMScheduler(
        1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return ReverseProcess.from_scheduler(scheduler, STEPS, eta=1.0), broad(scheduler)


def broad(scheduler: DDPMScheduler | DDIMScheduler) -> Mixture:
    """Two modes, so wide that drafts are often kept to the end."""
    return Mixture(torch.tensor([[-0.5], [0.8]]), 0.5, scheduler.alphas_cumprod.double())


KINDS = [ddpm_end, ddim_end, ddim_trailing_end]
Kind = Callable[[], tuple[ReverseProcess, Mixture]]


def advanced(result: SampleResult) -> torch.Tensor:
    """Steps that the rounds of each chain add up to."""
    assert result.accepted is not None
    return torch.where(result.accepted >= 0, result.accepted + 1, 0).sum(0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_place_is_left_for_the_step_after_the_draft(kind: Kind) -> None:
    process, _ = kind()
    assert (process.sigma > 0).all()
    assert max_draft_lengths(process).tolist() == [4, 3, 2, 1, 0]
    # A chain whose last step is noiseless, and one with noise in its last step alone.
    assert max_draft_lengths(ddpm(5)[1]).tolist() == [4, 3, 2, 1, 0]
    assert max_draft_lengths(ReverseProcess.from_scheduler(_trailing(), 1)).tolist() == [0]


def _trailing() -> DDPMScheduler:
    return DDPMScheduler(100, variance_type="fixed_large", timestep_spacing="trailing")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verifier", [BlockVerifier, ReflectionVerifier, ResidualVerifier])
@pytest.mark.parametrize("compiled", [False, True])
def test_such_chains_have_the_sequential_distribution(
    kind: Kind, verifier: Callable[[], Verifier], compiled: bool
) -> None:
    process, target = kind()
    eager = SpeculativeSampler(process, verifier=verifier(), window=8)
    sampler = CompiledSampler(eager, "plain") if compiled else eager
    noise, generator = chains(20_000, 1, seed=3)
    result = sampler(target, noise, generator=generator, record=True)
    assert (advanced(result) == STEPS).all()
    assert check_exactness(process, result).smallest > 1e-3
    noise, generator = chains(20_000, 1, seed=4)
    sequential = SequentialSampler(process)(target, noise, generator=generator).sample
    assert stats.ks_2samp(result.sample.flatten().numpy(), sequential.flatten().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drafter", [FreeDrafter(), FrozenDrafter(), RecyclingDrafter()])
@pytest.mark.parametrize("window", [1, 3, 40, AdaptiveWindow(max_window=9, min_acceptance=0.01, initial=9)])
def test_every_chain_has_exactly_its_steps(kind: Kind, drafter: Drafter, window: int | AdaptiveWindow) -> None:
    process, target = kind()
    sampler = SpeculativeSampler(process, drafter, ReflectionVerifier(), window)
    noise, generator = chains(500, 1)
    result = sampler(target, noise, generator=generator, record=True)
    assert (advanced(result) == STEPS).all()
    assert result.trajectory is not None and torch.equal(result.trajectory[-1], result.sample)
    for k in range(STEPS):
        rows = torch.full((500,), k)
        assert result.x0 is not None
        x = result.trajectory[k]
        torch.testing.assert_close(result.x0[k], process.x0(x, target(x, process.timesteps[rows]), rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_replayed_chain_has_exactly_its_steps(kind: Kind, compiled: bool) -> None:
    process, target = kind()
    eager = SpeculativeSampler(process, window=8)
    assert eager.replayed == STEPS - 1
    sampler = CompiledSampler(eager, "plain", batches=[600]) if compiled else eager
    noise, generator = chains(500, 1)
    drafted = sampler.predraft(target, noise, torch.zeros(500, 1), generator)
    cond = torch.full((500, 1), 0.02)
    result = sampler(target, noise, cond, generator, record=True, predraft=drafted)
    assert (advanced(result) == STEPS).all()
    assert result.replayed is not None and (result.replayed == STEPS - 1).any(), "some are kept whole"
    assert check_exactness(process, result).smallest > 1e-3


def test_one_noisy_step_is_a_plain_step() -> None:
    process = ReverseProcess.from_scheduler(_trailing(), 1)
    noise, generator = chains(7, 1)
    result = SpeculativeSampler(process)(broad(_trailing()), noise, generator=generator, record=True)
    assert advanced(result).tolist() == [1] * 7 and result.proposed is not None and not result.proposed.any()


def test_an_account_that_does_not_add_up_is_refused() -> None:
    account = {"start": torch.tensor([[0, 0], [3, 2]]), "accepted": torch.tensor([[2, 1], [1, 2]])}
    passes = torch.tensor([2, 2])
    parts = {"sample": torch.zeros(2, 1), "passes": passes, "evaluations": passes}
    SampleResult.of_rounds(5, torch.tensor([5, 5]), **account, **parts)
    with pytest.raises(RuntimeError, match="do not add up"):
        SampleResult.of_rounds(5, torch.tensor([5, 4]), **account, **parts)
    with pytest.raises(RuntimeError, match="chains of 4 steps"):
        SampleResult.of_rounds(4, torch.tensor([5, 5]), **account, **parts)
