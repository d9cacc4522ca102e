"""How uncertain x̂0 is along a policy's chains: measured, kept, and used by short chains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_fakes import SCHEDULER, GaussianTarget, gaussian, process_of, recorded, sampler_of
from diffusers import DDPMScheduler
from torch import Tensor

from specpolicy import ReverseProcess, SequentialSampler, SpeculativeSampler, samplers
from specpolicy.calibration.store import CalibrationError, load_calibration
from specpolicy.calibration.x0_variance import (
    X0Variance,
    load_x0_variance,
    measure_x0_variance,
    save_x0_variance,
    x0_variance_path,
)
from specpolicy.cli import main
from specpolicy.evaluation.two_sample import energy_distance
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.exactness import check_exactness
from specpolicy.utils.digests import checkpoint_digest

ROOT = Path(__file__).resolve().parents[2]


def in_closed_form(target: GaussianTarget, process: ReverseProcess) -> Tensor:
    """Mean square of x0 − x̂0(x_k) of the chain itself, which is linear in its noise along each column of the basis."""
    alpha_bar = DDPMScheduler(**SCHEDULER).alphas_cumprod.double()[process.timesteps][:, None]
    slope = target.slope(alpha_bar)
    step = process.a[:, None] + process.b[:, None] * slope
    noise = (process.sigma**2)[:, None].expand_as(step)
    before = [torch.ones_like(step[0])]  # variance of x_k
    for k in range(process.num_steps - 1):
        before.append(step[k] ** 2 * before[-1] + noise[k])
    gain, spread, found = torch.ones_like(step[0]), torch.zeros_like(step[0]), []
    for k in reversed(range(process.num_steps)):
        gain, spread = gain * step[k], spread + gain**2 * noise[k]
        found.append(((gain - slope[k]) ** 2 * before[k] + spread).mean())
    return torch.stack(found)


def test_it_is_what_is_known_of_a_gaussian() -> None:
    target = gaussian()
    found = measure_x0_variance(process_of(100), recorded(target, 100, 4000), {"file": "none"})
    torch.testing.assert_close(found.variance, in_closed_form(target, process_of(100)), rtol=0.08, atol=1e-6)
    assert found.about == {"file": "none", "chains": 4000}


def test_it_wants_chains_that_visit_every_timestep() -> None:
    target = gaussian()
    with pytest.raises(ValueError, match="chains that visit every timestep"):
        measure_x0_variance(process_of(20), recorded(target, 20, 20), {})
    with pytest.raises(ValueError, match="chains that visit every timestep"):
        measure_x0_variance(process_of(100), recorded(target, 20, 20), {})


def test_a_chain_of_it() -> None:
    scheduler = DDPMScheduler(**SCHEDULER)
    variance = torch.linspace(0, 0.5, 100, dtype=torch.float64)
    process = X0Variance(variance).chain(scheduler, 10)
    assert process.num_steps == 10 and process.analytic
    plain = ReverseProcess.from_scheduler(scheduler, timesteps=process.timesteps.tolist())
    added = process.sigma**2 - plain.sigma**2
    torch.testing.assert_close(added[:-1], (process.b**2 * variance[process.timesteps])[:-1])
    with pytest.raises(ValueError, match="the scheduler has 100 timesteps; the x0_variance is known of 50"):
        X0Variance(variance[:50]).chain(scheduler, 10)


def test_it_lies_beside_the_checkpoint_and_is_no_part_of_it(checkpoint: Path) -> None:
    digest = checkpoint_digest(checkpoint)
    variance = torch.rand(100, dtype=torch.float64)
    path = save_x0_variance(X0Variance(variance, {"chains": 3}), checkpoint)
    assert path == x0_variance_path(checkpoint) and checkpoint_digest(checkpoint) == digest
    read = load_x0_variance(checkpoint)
    torch.testing.assert_close(read.variance, variance, rtol=1e-5, atol=0)
    assert read.about == {"chains": 3}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"format": 1, "variance": [1.0], "about": {}}', "cannot be read"),
        ({"variance": [10**400] * 100}, "cannot be read"),
        ({"variance": [1e300] * 100}, "not a list of numbers from 0 to 10000"),
        ({"format": 9}, "format 9, this version reads 1"),
        ({"variance": [-1.0] * 100}, "not a list of numbers from 0 to 10000"),
        ({"variance": [float("inf")] * 100}, "not a list of numbers from 0 to 10000"),
        ({"variance": [float("nan")] * 100}, "not a list of numbers from 0 to 10000"),
        ({"variance": [[1.0]]}, "not a list of numbers from 0 to 10000"),
        ({"variance": ["much"]}, "cannot be read"),
        ({"checkpoint": "0" * 64}, "is of another policy"),
    ],
)
def test_what_cannot_be_used_says_how_to_make_it(checkpoint: Path, content: Any, says: str) -> None:
    path = save_x0_variance(X0Variance(torch.ones(100)), checkpoint)
    whole = json.loads(path.read_text())
    path.write_text(content if isinstance(content, str) else json.dumps(whole | content))
    with pytest.raises(CalibrationError, match=rf"{says}.*`specpolicy calibrate checkpoint=\S+ analytic=true` again"):
        load_x0_variance(checkpoint)


def test_from_observations_to_samplers(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    observations = {name: rng.normal(size=(30, 2, 2)) for name in ("position", "goal")}
    np.savez(tmp_path / "o.npz", **observations)
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    with pytest.raises(CalibrationError, match=r"how uncertain its x̂0 are.*`specpolicy calibrate \S+ analytic=true`"):
        sampler_of("analytic10", policy)
    job = ["calibrate", f"checkpoint={checkpoint}", f"observations={tmp_path / 'o.npz'}", "chains=60"]
    analytic = ["analytic=true", "num_inference_steps=10", f"out={tmp_path / 'rec'}"]
    assert main([*job, *analytic]) == 0
    assert "calibration-10-analytic.safetensors" in capsys.readouterr().out
    measured = x0_variance_path(checkpoint).read_text()
    assert load_x0_variance(checkpoint).about["observations"]["file"] == "o.npz"
    with pytest.raises(CalibrationError, match=r"no calibration for 10 steps; run `\S+ calibrate \S+ \S+steps=10`"):
        load_calibration(checkpoint, 10)
    with pytest.raises(CalibrationError, match=r"no calibration for 12 analytic steps.*steps=12 analytic=true`"):
        load_calibration(checkpoint, 12, analytic=True)
    one, other = sampler_of("analytic10", policy), sampler_of("analytic10_recycled", policy)
    assert isinstance(one, SequentialSampler) and isinstance(other, SpeculativeSampler) and one.exact and other.exact
    torch.testing.assert_close(one.process.sigma, other.process.sigma)
    assert main([*job, "analytic=true", "num_inference_steps=6", f"out={tmp_path / 'six'}"]) == 0
    assert x0_variance_path(checkpoint).read_text() == measured, "measured once"
    with pytest.raises(ValueError, match="loaded from one"):
        samplers.sequential(policy.scheduler, 10, analytic=True)


@pytest.mark.parametrize("task", ["square", "pusht", "tool_hang", "transport"])
def test_shipped_short_chains_belong_to_their_checkpoints(task: str) -> None:
    checkpoint = ROOT / "checkpoints" / task
    x0_variance, calibration = load_x0_variance(checkpoint), load_calibration(checkpoint, 10, analytic=True)
    assert len(x0_variance.variance) == 100 and x0_variance.variance[0] < 1e-3 < x0_variance.variance[99] < 1
    assert calibration.jacobian.num_steps == 10
    held_out = calibration.about["held_out"]
    assert all(each["linear"] < each["free"] for each in held_out["distance"].values())


@pytest.mark.slow
def test_ten_analytic_steps_come_closer_to_the_long_chain_than_ten_of_ddim_in_fewer_evaluations() -> None:
    policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / "pusht")
    with np.load(ROOT / "benchmarks" / "results" / "pusht" / "observations.npz") as arrays:
        picked = {name: np.repeat(arrays[name][[5, 15, 25]], 150, axis=0) for name in arrays.files}
    drawn = {}
    for number, name in enumerate(("ddpm", "ddim10", "analytic10", "analytic10_recycled")):
        generator = torch.Generator().manual_seed(number)
        result = policy.predict_action(picked, sampler_of(name, policy), generator, record=True).result
        drawn[name] = result.sample.flatten(1).double().numpy().reshape(3, 150, -1)
    distance = {
        name: np.mean([energy_distance(a, b).distance for a, b in zip(drawn[name], drawn["ddpm"], strict=True)])
        for name in drawn
    }
    assert max(distance["analytic10"], distance["analytic10_recycled"]) < 0.5 * distance["ddim10"]
    assert float(result.passes.double().mean()) < 5
    process = samplers.make_process(policy, 10, analytic=True)
    assert check_exactness(process, result).smallest > 1e-3
