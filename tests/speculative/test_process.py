"""The chain read off a scheduler does what the scheduler's own step does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from specpolicy import ReverseProcess, SpeculativeSampler

# diffusers keeps ᾱ in float32: 1 − ᾱ_t/ᾱ_{t−1} loses digits near t = 0, and the comparison with it.
TOLERANCE = 1e-4


def worst_difference(scheduler: Any, process: ReverseProcess, **step: Any) -> float:
    """Largest relative difference of mean and noise between process and ``scheduler.step`` over the chain."""
    generator = torch.Generator().manual_seed(0)
    process = process.to("cpu", torch.float64)
    worst = 0.0
    for k, t in enumerate(scheduler.timesteps):
        x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
        output = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
        seed = torch.Generator().manual_seed(k)
        expected = scheduler.step(output, t, x, generator=seed, **step).prev_sample
        noise = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        rows = torch.full((3,), k)
        found = process.mean(x, process.x0(x, output, rows), rows) + process.sigma[k] * noise
        scale = 1 + (found - process.sigma[k] * noise).abs().max()
        worst = max(worst, float((found - expected).abs().max() / scale))
    return worst


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "limit", [{}, {"clip_sample": True, "clip_sample_range": 1.5}, {"thresholding": True, "sample_max_value": 2.0}]
)
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 100), ("leading", 7), ("trailing", 13), ("linspace", 20)])
def test_ddpm(variance: str, prediction: str, limit: dict[str, Any], spacing: str, steps: int) -> None:
    config = {"clip_sample": False} | limit
    scheduler = DDPMScheduler(
        100,
        beta_schedule="squaredcos_cap_v2",
        variance_type=variance,
        prediction_type=prediction,
        timestep_spacing=spacing,
        **config,
    )
    process = ReverseProcess.from_scheduler(scheduler, steps)
    assert scheduler.num_inference_steps is None, "the scheduler that was handed in must not change"
    scheduler.set_timesteps(steps)
    assert process.timesteps.tolist() == scheduler.timesteps.tolist()
    assert worst_difference(scheduler, process) < TOLERANCE


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_custom_timesteps(variance: str) -> None:
    timesteps = [99, 60, 59, 20, 7, 4]
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", variance_type=variance)
    process = ReverseProcess.from_scheduler(scheduler, timesteps=timesteps)
    scheduler.set_timesteps(timesteps=timesteps)
    assert worst_difference(scheduler, process) < TOLERANCE
    assert bool(process.sigma[-1] > 0) == (variance == "fixed_large")
    # and a scheduler that has been set already is taken as it is
    assert ReverseProcess.from_scheduler(scheduler).timesteps.tolist() == timesteps


@pytest.mark.parametrize("eta", [0.2, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "limit", [{"clip_sample": False}, {"clip_sample": True, "clip_sample_range": 1.0}, {"thresholding": True}]
)
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 50), ("trailing", 10), ("linspace", 20)])
def test_ddim(eta: float, prediction: str, limit: dict[str, Any], to_one: bool, spacing: str, steps: int) -> None:
    scheduler = DDIMScheduler(
        100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        set_alpha_to_one=to_one,
        timestep_spacing=spacing,
        **limit,
    )
    process = ReverseProcess.from_scheduler(scheduler, steps, eta=eta)
    scheduler.set_timesteps(steps)
    assert worst_difference(scheduler, process, eta=eta) < TOLERANCE


def test_image_schedule_of_1000_steps() -> None:
    scheduler = DDPMScheduler(1000, beta_schedule="linear")
    process = ReverseProcess.from_scheduler(scheduler, 1000)
    scheduler.set_timesteps(1000)
    # ᾱ is float32 in diffusers: 1 − ᾱ_t/ᾱ_{t−1} near t = 0 keeps about four digits there, and so does the comparison
    assert worst_difference(scheduler, process) < 1e-4


@pytest.mark.parametrize(
    ("scheduler", "arguments", "says"),
    [
        (DDIMScheduler(100), {"num_inference_steps": 10}, "deterministic"),
        (DDIMScheduler(100), {"num_inference_steps": 10, "eta": 3.0}, "too large"),
        (DDPMScheduler(100, variance_type="learned_range"), {"num_inference_steps": 10}, "fixed_small"),
        (DPMSolverMultistepScheduler(100), {"num_inference_steps": 10}, "SchedulerSampler"),
        (DDPMScheduler(100), {"num_inference_steps": 0}, "whole number from 1 on"),
        (DDIMScheduler(100), {"eta": 1.0, "timesteps": [5, 1]}, "custom"),
    ],
)
def test_refusals_say_what_to_do(scheduler: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ReverseProcess.from_scheduler(scheduler, **arguments)


def test_a_process_without_noise_is_refused() -> None:
    process = ReverseProcess.from_scheduler(DDPMScheduler(100), 1)
    assert process.sigma.tolist() == [0.0]
    with pytest.raises(ValueError, match="nothing to verify"):
        SpeculativeSampler(process)
