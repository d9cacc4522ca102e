"""Samplers whose distribution is known, at observations where the policy has one mode or two."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from specpolicy.evaluation.fidelity import fidelity_json, fidelity_table, measure_fidelity


@dataclass(frozen=True)
class Gaussian:
    """Draws chunks around ±mode with a given width."""

    exact: bool
    width: float = 1.0
    rarer: float = 0.3


class TwoWayPolicy:
    """Chunks around +goal, or −goal with the sampler's probability; their last coordinate is in another unit."""

    config = SimpleNamespace(n_obs_steps=1)

    def predict_action(self, observation: Any, sampler: Gaussian, generator: torch.Generator) -> Any:
        goal = torch.from_numpy(observation["goal"])[:, -1]
        sign = 1 - 2 * (torch.rand(len(goal), 1, generator=generator) < sampler.rarer).double()
        noise = torch.randn(len(goal), 4, 2, generator=generator, dtype=torch.float64)
        actions = (sign * goal)[:, None] + sampler.width * noise
        cost = SimpleNamespace(passes=torch.full((len(goal),), 3), evaluations=torch.full((len(goal),), 7))
        return SimpleNamespace(actions=(actions * torch.tensor([1.0, 100.0])).numpy(), result=cost)


def observation(goal: float) -> dict[str, np.ndarray]:
    return {"goal": np.full((1, 1, 2), goal)}


SAMPLERS = {
    "ddpm": Gaussian(True),
    "same": Gaussian(True),
    "narrow": Gaussian(False, 0.7),
    "one way": Gaussian(False, rarer=0.0),
}
OBSERVATIONS = [observation(0.0), observation(5.0), observation(5.0)]


@pytest.fixture(scope="module")
def results() -> Any:
    return measure_fidelity(TwoWayPolicy(), SAMPLERS, OBSERVATIONS, chunks=120, permutations=100)  # type: ignore[arg-type]


def test_the_same_distribution_is_near_and_others_are_far(results: Any) -> None:
    for name in ("ddpm", "same"):
        assert results[name].p_value > 0.01
        assert np.mean(results[name].distance) < 0.02
    for name in ("narrow", "one way"):
        assert results[name].p_value == pytest.approx(1 / 101)
    assert np.mean(results["one way"].distance) > 0.1


def test_spread_roughness_and_modes_say_what_differs(results: Any) -> None:
    assert results["narrow"].spread[0] == pytest.approx(0.7, abs=0.06)
    assert results["narrow"].roughness == pytest.approx([0.7] * 3, abs=0.06)
    assert results["same"].spread == pytest.approx([1.0] * 3, abs=0.12)
    assert results["one way"].rarer_mode[1:] == [0.0, 0.0]
    assert results["same"].rarer_mode[1:] == pytest.approx([0.3, 0.3], abs=0.13)


def test_the_same_seed_gives_the_same_numbers(results: Any) -> None:
    again = measure_fidelity(TwoWayPolicy(), SAMPLERS, OBSERVATIONS, chunks=120, permutations=100)  # type: ignore[arg-type]
    assert again == results


def test_table_and_json_carry_every_sampler_and_its_distribution(results: Any) -> None:
    table = fidelity_table(results, 120)
    for name, sampler in SAMPLERS.items():
        line = next(line for line in table.splitlines() if line.startswith(f"| {name}"))
        assert ("exact" if sampler.exact else "approx.") in line and "| 3.0 | 7 |" in line
    stored = json.loads(fidelity_json(results, 120, {"seed": 0}))
    assert stored["samplers"]["narrow"]["distance"] == results["narrow"].distance


def test_a_missing_reference_and_no_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="'ddpm' among the samplers"):
        measure_fidelity(TwoWayPolicy(), {"x": Gaussian(True)}, OBSERVATIONS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one observation"):
        measure_fidelity(TwoWayPolicy(), SAMPLERS, [])  # type: ignore[arg-type]
