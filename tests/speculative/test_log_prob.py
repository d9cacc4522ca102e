"""The log-probability of a chain is the closed-form density of all its states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from mixtures import chains, ddpm, mixture
from scipy import stats

from specpolicy import (
    FreeDrafter,
    ReverseProcess,
    SampleResult,
    SequentialSampler,
    SpeculativeSampler,
    compile_sampler,
)
from specpolicy.speculative.denoiser import Denoiser
from specpolicy.speculative.log_prob import chain_log_prob

STEPS, BATCH = 6, 5


def gaussian_target(process: ReverseProcess) -> tuple[Denoiser, np.ndarray, np.ndarray]:
    """The denoiser of a Gaussian, and c and d of its x̂0 = c_k x + d_k."""
    scheduler, _ = ddpm(STEPS)
    target = mixture(scheduler, 1, modes=1, scale=0.4)
    steps = torch.arange(process.num_steps)

    def x0(x: float) -> np.ndarray:
        states = torch.full((process.num_steps, 1), x, dtype=torch.float64)
        return process.x0(states, target(states, process.timesteps), steps).flatten().numpy()

    return target, x0(1.0) - x0(0.0), x0(0.0)


def joint_log_density(process: ReverseProcess, slope: np.ndarray, shift: np.ndarray, chain: np.ndarray) -> float:
    """log p(x_1 … x_J | x_0) of a linear chain as one multivariate normal density, built from its covariance."""
    a, b, sigma = (c.numpy() for c in (process.a, process.b, process.sigma))
    count = int((sigma > 0).sum())
    move, mean = np.eye(count), np.zeros(count)
    for k in range(count):  # (I − lower) x = known part + σ z
        gain = a[k] + b[k] * slope[k]
        mean[k] = b[k] * shift[k] + (gain * chain[0] if k == 0 else 0.0)
        if k:
            move[k, k - 1] = -gain
    inverse = np.linalg.inv(move)
    covariance = inverse @ np.diag(sigma[:count] ** 2) @ inverse.T
    return float(stats.multivariate_normal(inverse @ mean, covariance).logpdf(chain[1 : count + 1]))


@pytest.mark.parametrize("kind", ["sequential", "speculative", "compiled"])
def test_sum_is_the_closed_form_density_of_the_chain(kind: str) -> None:
    _, process = ddpm(STEPS)
    target, slope, shift = gaussian_target(process)
    noise, generator = chains(BATCH, 1)
    sampler = SequentialSampler(process) if kind == "sequential" else SpeculativeSampler(process, FreeDrafter())
    if kind == "compiled":
        sampler = compile_sampler(sampler, "plain")
    result = sampler(target, noise, generator=generator, record=True)
    found = result.log_prob(process)
    expected = [
        joint_log_density(process, slope, shift, result.trajectory[:, row, 0].double().numpy()) for row in range(BATCH)
    ]
    assert found.total.numpy() == pytest.approx(expected, abs=1e-5)
    again = chain_log_prob(process, target, result.trajectory)
    assert torch.allclose(again.transitions, found.transitions, atol=1e-5)


def test_events_of_several_numbers_sum_over_them() -> None:
    _, process = ddpm(2)
    noise, generator = chains(BATCH, 3)
    result = SequentialSampler(process)(lambda x, t, cond: 0 * x, noise, generator=generator, record=True)
    x0 = result.x0[0]
    mean = process.a[0] * result.trajectory[0] + process.b[0] * x0
    expected = stats.norm.logpdf(result.trajectory[1].numpy(), mean.numpy(), float(process.sigma[0])).sum(1)
    assert result.log_prob(process).total.numpy() == pytest.approx(expected)


def test_deterministic_steps_are_left_out() -> None:
    _, process = ddpm(STEPS)
    assert process.sigma[-1] == 0
    noise, generator = chains(BATCH, 2)
    result = SequentialSampler(process)(lambda x, t, cond: 0 * x, noise, generator=generator, record=True)
    found = result.log_prob(process)
    assert found.steps.tolist() == list(range(STEPS - 1))
    assert found.transitions.shape == (STEPS - 1, BATCH)
    moved = replace(result, trajectory=result.trajectory.clone())
    moved.trajectory[-1] += 1
    assert torch.equal(moved.log_prob(process).total, found.total)


def test_gradient_is_that_of_finite_differences() -> None:
    _, process = ddpm(STEPS, clip_sample=False)
    noise, generator = chains(BATCH, 2)
    cond = torch.linspace(-1, 1, BATCH, dtype=torch.float64)[:, None]
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def total(value: torch.Tensor) -> torch.Tensor:
        chain = chain_log_prob(process, lambda x, t, c: value * x + c * value**2, trajectory, cond)
        return chain.total.sum()

    trajectory = SequentialSampler(process)(lambda x, t, c: 0.3 * x, noise, cond, generator, record=True).trajectory
    (gradient,) = torch.autograd.grad(total(weight), weight)
    slope = (total(weight.detach() + 1e-5) - total(weight.detach() - 1e-5)) / 2e-5
    assert float(gradient) == pytest.approx(float(slope), rel=1e-5) and abs(float(gradient)) > 1e-3


def test_chosen_steps_are_rows_of_all_steps() -> None:
    scheduler, process = ddpm(STEPS)
    target, (noise, generator) = mixture(scheduler, 2), chains(BATCH, 2)
    trajectory = SpeculativeSampler(process)(target, noise, generator=generator, record=True).trajectory
    every = chain_log_prob(process, target, trajectory)
    some = chain_log_prob(process, target, trajectory, steps=torch.tensor([4, 1]))
    assert torch.allclose(some.transitions, every.transitions[[4, 1]])
    with pytest.raises(ValueError, match="no density"):
        chain_log_prob(process, target, trajectory, steps=torch.tensor([STEPS - 1]))


def test_errors_say_what_to_hand_in() -> None:
    _, process = ddpm(STEPS)
    noise, generator = chains(BATCH, 2)
    plain: SampleResult = SequentialSampler(process)(lambda x, t, c: 0 * x, noise, generator=generator)
    with pytest.raises(ValueError, match="record=True"):
        plain.log_prob(process)
    result = SequentialSampler(process)(lambda x, t, c: 0 * x, noise, generator=generator, record=True)
    with pytest.raises(ValueError, match="the process that it was sampled with"):
        result.log_prob(ddpm(STEPS + 1)[1])
    ddim = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=False)
    with pytest.raises(ValueError, match="deterministic"):
        result.log_prob(ReverseProcess.deterministic(ddim, STEPS))
