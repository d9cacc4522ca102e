"""The samplers' contract: shapes, batches, dtypes, conditions, and errors that say what was wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from mixtures import chains, ddpm, mixture

from specpolicy import (
    BlockVerifier,
    DenoiserError,
    FreeDrafter,
    FrozenDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    SchedulerSampler,
    SequentialSampler,
    SpeculativeSampler,
    asd,
)
from specpolicy.speculative.linear_chain import MultiStepTransition, max_draft_lengths
from specpolicy.speculative.window import window_lengths

DRAFTERS = [FrozenDrafter(), FreeDrafter()]
VERIFIERS = [ReflectionVerifier(), ResidualVerifier(), BlockVerifier()]


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("window", [1, 7, 500, [3] * 30])
def test_shapes_and_account(drafter: Any, verifier: Any, window: Any) -> None:
    scheduler, process = ddpm(30)
    target = mixture(scheduler, 12)
    noise = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    sampler = SpeculativeSampler(process, drafter, verifier, window)
    result = sampler(target, noise, generator=torch.Generator().manual_seed(1), record=True)
    assert sampler.exact
    assert result.sample.shape == noise.shape and result.sample.dtype == noise.dtype
    assert result.trajectory is not None and result.trajectory.shape == (31, 5, 4, 3)
    assert result.x0 is not None and result.x0.shape == (30, 5, 4, 3)
    torch.testing.assert_close(result.trajectory[0], noise)
    torch.testing.assert_close(result.trajectory[-1], result.sample)
    assert torch.isfinite(result.sample).all()
    assert (result.passes <= 62).all() and (result.evaluations >= result.passes).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    scheduler, process = ddpm(20)
    noise, generator = chains(3, 4, dtype=torch.float32)
    seen = set()

    def target(x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        seen.add(x.dtype)
        return mixture(scheduler, 4)(x, t)

    result = SpeculativeSampler(process, window=6)(target, noise.to(dtype), generator=generator)
    assert seen == {dtype} and result.sample.dtype == dtype and torch.isfinite(result.sample).all()


@pytest.mark.parametrize("make", [lambda p: SpeculativeSampler(p, window=8), lambda p: asd(p), SequentialSampler])
def test_a_chain_does_not_depend_on_its_neighbours(make: Any) -> None:
    scheduler, process = ddpm(50)
    target, sampler = mixture(scheduler, 3), make(process)
    noise, _ = chains(6, 3, seed=3)
    cond = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)[:, None]
    together = sampler(target, noise, cond=cond, generator=generators([0, 1, 2, 3, 4, 5]))
    for order in ([4], [2, 5], [5, 0, 3]):
        apart = sampler(target, noise[order], cond=cond[order], generator=generators(order))
        torch.testing.assert_close(apart.sample, together.sample[order], rtol=1e-9, atol=1e-9)
        assert apart.passes.tolist() == together.passes[order].tolist()


def test_conditions_of_any_nesting_follow_their_rows() -> None:
    scheduler, process = ddpm(40)
    centre = torch.tensor([[-3.0], [0.0], [3.0], [6.0]])

    def target(x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        first, (second, nothing) = cond["a"], cond["b"]
        assert nothing is None
        torch.testing.assert_close(first, second[:, 0])
        return mixture(scheduler, 1)(x, t, first)

    noise, generator = chains(4, 1, dtype=torch.float32)
    cond = {"a": centre, "b": (centre[:, None], None)}
    sample = SpeculativeSampler(process, window=9)(target, noise, cond=cond, generator=generator).sample
    assert ((sample - centre).abs() < 1.4).all()


def test_linear_chain_is_the_loop() -> None:
    _, process = ddpm(25)
    moved = process.to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)
    k = torch.tensor([0, 5, 18])
    x, f = (torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    noise = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    states = MultiStepTransition(moved).draft(k, x, f, noise)
    for j in range(7):
        torch.testing.assert_close(states[:, j], x)
        if j < 6:
            x = moved.mean(x, f, k + j) + moved.sigma[k + j][:, None] * noise[:, j]


def test_passes_shrink_with_the_window() -> None:
    scheduler, process = ddpm(100)
    target = mixture(scheduler, 8)
    means = []
    for window in (1, 4, 24):
        noise, generator = chains(64, 8)
        means.append(
            SpeculativeSampler(process, window=window)(target, noise, generator=generator).passes.double().mean()
        )
    assert 49 <= means[0] <= 70 and means[0] > means[1] > means[2] and means[2] < 15


@pytest.mark.parametrize("scheduler", [DDIMScheduler(100, clip_sample=False), DPMSolverMultistepScheduler(100)])
def test_scheduler_sampler_is_the_plain_loop(scheduler: Any) -> None:
    target = mixture(DDPMScheduler(100), 3)
    target.alpha_bars = scheduler.alphas_cumprod.double()
    noise, _ = chains(4, 3, dtype=torch.float32)
    sampler = SchedulerSampler(scheduler, 10)
    first, second = sampler(target, noise), sampler(target, noise, record=True)
    x = noise
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps:
        x = scheduler.step(target(x, t.expand(4)), t, x).prev_sample
    torch.testing.assert_close(first.sample, x)
    torch.testing.assert_close(second.sample, x)
    assert not sampler.exact and first.passes.tolist() == [10] * 4


def test_sequential_ddpm_agrees_with_diffusers_in_law() -> None:
    scheduler, process = ddpm(20)
    target = mixture(scheduler, 1)
    noise, generator = chains(4000, 1)
    ours = SequentialSampler(process)(target, noise, generator=generator).sample
    theirs = SchedulerSampler(scheduler, 20)(target, noise, generator=generator).sample
    for quantile in (0.1, 0.25, 0.75, 0.9):
        assert abs(ours.quantile(quantile) - theirs.quantile(quantile)) < 0.08


# ---- bad input


@pytest.mark.parametrize("window", [0, -3, 2.5, [5] * 9, [0] * 10, True])
def test_bad_windows(window: Any) -> None:
    with pytest.raises(ValueError, match="window"):
        window_lengths(window, max_draft_lengths(ddpm(10)[1]))


def test_a_window_of_zero_is_refused_by_the_sampler() -> None:
    with pytest.raises(ValueError, match="use SequentialSampler"):
        SpeculativeSampler(ddpm(10)[1], window=0)


@pytest.mark.parametrize(
    "make", [SpeculativeSampler, SequentialSampler, lambda p: SchedulerSampler(DDIMScheduler(100), 5)]
)
def test_bad_denoisers(make: Any) -> None:
    sampler, noise = make(ddpm(10)[1]), torch.randn(2, 3)
    with pytest.raises(DenoiserError, match="NaN or infinity at timesteps"):
        sampler(lambda x, t, c: x * float("nan"), noise)
    with pytest.raises(DenoiserError, match="shape"):
        sampler(lambda x, t, c: x[:, :2], noise)
    with pytest.raises(DenoiserError, match="NoneType"):
        sampler(lambda x, t, c: None, noise)


def test_bad_calls() -> None:
    sampler, target = SpeculativeSampler(ddpm(10)[1]), lambda x, t, c: x
    with pytest.raises(ValueError, match="noise has shape"):
        sampler(target, torch.randn(4))
    with pytest.raises(ValueError, match=r"cond\['a'\]\[1\] has shape"):
        sampler(target, torch.randn(4, 2), cond={"a": (torch.zeros(4), torch.zeros(3))})
    with pytest.raises(TypeError, match="cond"):
        sampler(target, torch.randn(4, 2), cond="square")
    with pytest.raises(ValueError, match="3 generators for a batch of 4"):
        sampler(target, torch.randn(4, 2), generator=generators([0, 1, 2]))
