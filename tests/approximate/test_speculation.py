"""Where the network looks ahead, and how it gets there."""

from __future__ import annotations

import pytest
import tiny_networks as tiny
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from specpolicy.approximate.specdiff.importance import CachingError, look_ahead_steps, trajectory_of


def test_looks_are_in_the_middles_of_equal_parts() -> None:
    times = [float(time) for time in range(100, 0, -5)]
    assert look_ahead_steps(times, 2) == [times[5], times[15]]
    assert look_ahead_steps(times, 1) == [times[10]]
    assert look_ahead_steps(times, 0) == [] and look_ahead_steps(times[:1], 2) == []
    assert look_ahead_steps(times[:2], 2) == [times[1]], (
        "never at the first time, which is computed anyway, and never twice"
    )


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_jump_is_a_long_ddim_step(kind: str) -> None:
    """From 75 to 50 in one step, as diffusers takes it at four steps of a hundred."""
    scheduler = DDIMScheduler(
        100, beta_schedule="squaredcos_cap_v2", prediction_type=kind, clip_sample=False, set_alpha_to_one=False
    )
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [75, 50, 25, 0]
    x, output = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    there = scheduler.step(output, 75, x, eta=0.0).prev_sample
    torch.testing.assert_close(trajectory_of(scheduler).jump(x, output, 75.0, 50.0), there, rtol=1e-4, atol=1e-4)


def test_a_jump_of_a_flow_is_an_euler_step() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(2)
    now, then = scheduler.timesteps.tolist()
    x, output = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    there = scheduler.step(output, scheduler.timesteps[0], x).prev_sample
    torch.testing.assert_close(trajectory_of(scheduler).jump(x, output, now, then), there)


def test_schedulers_without_a_way_ahead() -> None:
    with pytest.raises(CachingError, match=r"DDPMScheduler: neither flow matching.*speculative=0"):
        trajectory_of(tiny.scheduler(prediction_type="learned"))
