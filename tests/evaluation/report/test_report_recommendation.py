"""What follows from the rows, and only from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_fakes import SAMPLERS, episodes, timed, write_folder

from specpolicy import samplers
from specpolicy.config import compose, to_container
from specpolicy.control.latency_log import CallLog
from specpolicy.evaluation.report.figures import acceptance_along_chain
from specpolicy.evaluation.report.recommendation import cautions_of, differs, recommend
from specpolicy.evaluation.report.results import (
    CHAINS,
    RealTimeBudget,
    TargetDistribution,
    TaskResults,
    read_task,
    target_distribution_of,
)
from specpolicy.evaluation.statistics import Estimate
from specpolicy.evaluation.tables import interval_text, milliseconds, number_ranges, p_text

EVEN = [True, False] * 30


def task(folder: Path, outcomes: dict[str, list[bool]]) -> TaskResults:
    return read_task(write_folder(folder, episodes(outcomes), timed(list(outcomes))))


def test_the_fastest_of_each_kind_is_recommended(tmp_path: Path) -> None:
    results = task(tmp_path / "reach", dict.fromkeys(SAMPLERS, EVEN))
    assert [(each.kind, each.title, each.row.sampler) for each in recommend(results)] == [
        ("distribution", "Fastest with the distribution of ddpm", "free"),
        ("exact", "Fastest exact sampler", "short"),
        ("any", "Fastest of any kind", "ddim"),
    ]
    budget = RealTimeBudget(20, 3)
    assert str(budget) == "3 actions at 20 Hz last 150 ms"
    kept = {row.sampler: budget.kept_by(row) for row in results.rows}
    assert kept == {"ddpm": False, "free": True, "short": True, "ddim": True}


def test_a_loss_of_success_is_a_grave_caution(tmp_path: Path) -> None:
    results = task(tmp_path / "reach", {"ddpm": [True] * 60, "free": [True] * 60, "ddim": EVEN})
    worse = results.row("ddim")
    assert worse is not None and differs(worse) and not differs(results.rows[1])
    (grave,) = [caution.text for caution in cautions_of(results) if caution.grave]
    assert grave.startswith("Success of ddim (approximate) differs from ddpm: -50.0 [")


def test_the_same_distribution_with_another_success_is_said_to_be_one(tmp_path: Path) -> None:
    (grave,) = [each.text for each in cautions_of(task(tmp_path / "reach", {"ddpm": [True] * 60, "free": EVEN}))][:1]
    assert grave.startswith("Success of free differs") and "although both sample the same distribution" in grave


def test_without_latency_nothing_is_recommended(tmp_path: Path) -> None:
    untimed = read_task(write_folder(tmp_path / "a", episodes({"ddpm": EVEN}, "a")))
    assert recommend(untimed) == []
    assert "No latency was measured." in [caution.text for caution in cautions_of(untimed)]
    alone = recommend(task(tmp_path / "b" / "reach", {"ddim": EVEN}))
    assert [(each.kind, each.row.sampler) for each in alone] == [("any", "ddim")]


def test_a_distribution_is_known_from_recipes_of_this_library_alone() -> None:
    assert (
        target_distribution_of(SAMPLERS["free"]["recipe"])
        == target_distribution_of(SAMPLERS["ddpm"]["recipe"])
        == TargetDistribution(100)
    )
    assert target_distribution_of(SAMPLERS["short"]["recipe"]) == TargetDistribution(20)
    analytic = {"_target_": "specpolicy.samplers.sequential", "num_inference_steps": 20, "analytic": True}
    assert target_distribution_of(analytic) == TargetDistribution(20, analytic=True) != TargetDistribution(20)
    assert str(TargetDistribution(20)) == "20 steps" and str(TargetDistribution(20, True)) == "20 analytic steps"
    for name in ("recycled", "linear_block20", "auto"):
        recipe = to_container(compose("rollout", [f"sampler={name}"]).sampler)
        compiled = {"_target_": "specpolicy.samplers.compiled", "sampler": recipe}
        steps = TargetDistribution(20 if name.endswith("20") else 100)
        policy = {"num_inference_steps": None, "scheduler": {"num_train_timesteps": 100}}
        assert target_distribution_of(recipe, policy) == target_distribution_of(compiled, policy) == steps
    names = [name.removeprefix("specpolicy.samplers.") for name in CHAINS]
    assert all(callable(getattr(samplers, name)) for name in names)
    for strange in (None, "SequentialSampler(K=100)", ["x"], {"_target_": "mine.sampler", "num_inference_steps": 100}):
        assert target_distribution_of(strange) is None


def test_acceptance_counts_accepted_steps_and_the_first_rejection() -> None:
    # Steps 0-3 drafted, 2 accepted, 2 rejected; 3-6 drafted and accepted; 7 needs no draft; 8 drafted and rejected.
    one = CallLog(True, [1], [3], [9], [[[0, 2], [3, 4], [8, 0], [9, 0]]], [[4, 4, 1, 0]])
    found = acceptance_along_chain(one)
    assert found is not None
    np.testing.assert_allclose(found.position, [5, 15, 25, 35, 45, 55, 65, 85])
    np.testing.assert_allclose(found.rate, [1, 1, 0, 1, 1, 1, 1, 0])
    assert found.overall == pytest.approx(6 / 8)
    assert acceptance_along_chain(CallLog(True, [1], [3], [9], one.rounds)) is None
    assert acceptance_along_chain(CallLog(True, [1], [3], [9])) is None


def test_numbers_as_they_are_shown() -> None:
    assert (milliseconds(3.274), milliseconds(54.12), milliseconds(132.8)) == ("3.27", "54.1", "133")
    assert interval_text(Estimate(-0.0204, -0.05, 0.05), "+.1f", 100) == "-2.0 [-5.0, +5.0]"
    assert (p_text(0.852), p_text(0.0123), number_ranges([3, 9, 7, 8, 3])) == ("0.85", "0.01", "3, 7–9")
