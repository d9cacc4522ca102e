"""Few timesteps, dense towards the sample, and noise that makes up for long steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from mixtures import Mixture, chains, ddpm, mixture
from torch import Tensor

from specpolicy import (
    BlockVerifier,
    Drafter,
    FreeDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ReverseProcess,
    SpeculativeSampler,
    Verifier,
    compile_sampler,
)
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.process import dense_timesteps

SCALE = 0.4


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 50, 99, 100])
@pytest.mark.parametrize("power", [1.0, 1.75, 4.0])
def test_timesteps_fall_from_the_noisiest_to_none(steps: int, power: float) -> None:
    timesteps = dense_timesteps(100, steps, power)
    assert len(timesteps) == steps and timesteps[0] == 99 and timesteps[-1] == 0
    assert all(before > after for before, after in pairwise(timesteps))


def test_they_are_close_to_each_other_where_the_sample_takes_shape() -> None:
    gaps = [before - after for before, after in pairwise(dense_timesteps(100, 10))]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 4 * gaps[-1]
    assert dense_timesteps(100, 100) == list(range(99, -1, -1))


@pytest.mark.parametrize(("steps", "power"), [(1, 1.75), (101, 1.75), (10, 0.5), (10, float("inf"))])
def test_impossible_spacings_are_refused(steps: int, power: float) -> None:
    with pytest.raises(ValueError, match="expected 2 to 100 steps and a power of 1 or more"):
        dense_timesteps(100, steps, power)


def x0_variance(scale: float, alpha_bar: Tensor) -> Tensor:
    """Var(x0 | x_t) for x0 ~ N(m, scale²)."""
    return scale**2 * (1 - alpha_bar) / (alpha_bar * scale**2 + 1 - alpha_bar)


def variances(process: ReverseProcess, alpha_bar: Tensor) -> list[float]:
    """Variance of the state before each step and at the end, in closed form, where x0 is N(0, SCALE²)."""
    found = [1.0]
    for a, b, sigma, alpha in zip(process.a, process.b, process.sigma, alpha_bar, strict=True):
        slope = alpha.sqrt() * SCALE**2 / (alpha * SCALE**2 + 1 - alpha)  # of x̂0 = E[x0 | x]
        found.append(float((a + b * slope) ** 2 * found[-1] + sigma**2))
    return found


@pytest.mark.parametrize("steps", [3, 5, 10])
def test_of_a_gaussian_a_short_chain_with_matched_noise_has_the_law_at_every_step(steps: int) -> None:
    """One number for the spread of x0 is all there is to know of a Gaussian, so that no step may be too long."""
    scheduler, _ = ddpm(steps)
    short = ReverseProcess.from_scheduler(scheduler, timesteps=dense_timesteps(100, steps))
    alpha_bar = scheduler.alphas_cumprod.double()[short.timesteps]
    analytic = short.with_analytic_variance(x0_variance(SCALE, alpha_bar))
    assert analytic.analytic and not short.analytic
    wanted = alpha_bar * SCALE**2 + 1 - alpha_bar
    assert variances(analytic, alpha_bar)[1:-1] == pytest.approx(wanted[1:].tolist(), rel=1e-6)
    assert variances(analytic, alpha_bar)[-1] == pytest.approx(SCALE**2, rel=0.01)
    assert variances(short, alpha_bar)[-1] < 0.97 * SCALE**2, "without it, the chain is too narrow"


def test_what_is_certain_and_what_has_no_noise_stays() -> None:
    _, process = ddpm(10)
    same = process.with_analytic_variance(torch.zeros(10))
    torch.testing.assert_close(same.sigma, process.sigma)
    wide = process.with_analytic_variance(torch.ones(10))
    assert wide.sigma[-1] == process.sigma[-1] == 0 and (wide.sigma[:-1] > process.sigma[:-1]).all()
    assert wide.to("cpu", torch.float32).analytic
    for name in ("timesteps", "a", "b", "from_state", "from_output"):
        assert torch.equal(getattr(wide, name), getattr(process, name))


@pytest.mark.parametrize("given", [torch.ones(9), -torch.ones(10), torch.full((10,), torch.nan)])
def test_what_is_no_uncertainty_is_refused(given: Tensor) -> None:
    with pytest.raises(ValueError, match="x0_variance must be 10 finite variances, one for each step"):
        ddpm(10)[1].with_analytic_variance(given)


@pytest.mark.parametrize(
    ("drafter", "verifier", "window"),
    [(FreeDrafter(), BlockVerifier(), 3), (RecyclingDrafter(), ReflectionVerifier(), 9)],
)
def test_speculation_is_exact_for_it(drafter: Drafter, verifier: Verifier, window: int) -> None:
    scheduler, _ = ddpm(10)
    target: Mixture = mixture(scheduler, 2, scale=0.2)
    short = ReverseProcess.from_scheduler(scheduler, timesteps=dense_timesteps(100, 10))
    process = short.with_analytic_variance(x0_variance(0.5, scheduler.alphas_cumprod.double()[short.timesteps]))
    noise, generator = chains(10_000, 2, seed=3)
    result = SpeculativeSampler(process, drafter, verifier, window)(target, noise, generator=generator, record=True)
    assert result.passes.double().mean() < 10
    assert check_exactness(process, result).smallest > 1e-3


def test_compiled_rounds_know_the_noise() -> None:
    scheduler, process = ddpm(10)
    analytic = process.with_analytic_variance(torch.full((10,), 0.05))
    target, noise = mixture(scheduler, 2), torch.randn(5, 2, dtype=torch.float64)
    eager, other = (SpeculativeSampler(each, FreeDrafter(), BlockVerifier(), 4) for each in (analytic, process))
    fast = compile_sampler(eager, "plain")
    samples = [each(target, noise, generator=torch.Generator().manual_seed(0)).sample for each in (eager, fast, other)]
    torch.testing.assert_close(samples[0], samples[1])
    assert not torch.allclose(samples[0], samples[2])
