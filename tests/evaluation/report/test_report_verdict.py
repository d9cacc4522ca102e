"""What follows from the rows, and only from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_fakes import SAMPLERS, episodes, timed, write_folder

from specpolicy.config import compose, to_container
from specpolicy.evaluation.latency import CallLog
from specpolicy.evaluation.report.formatting import listed, milliseconds, p_value, points, ranges, times
from specpolicy.evaluation.report.recommendation import Recommendation, recommend, warnings_of
from specpolicy.evaluation.report.results import (
    RealTimeBudget,
    TargetDistribution,
    acceptance_of,
    read_task,
    target_distribution_of,
)

EVEN = [True, False] * 30


def verdict(folder: Path, outcomes: dict[str, list[bool]], pace: RealTimeBudget | None = None) -> Recommendation:
    return recommend(read_task(write_folder(folder, episodes(outcomes), timed(list(outcomes)))), pace)


def test_a_sampler_of_the_same_law_is_advised_and_others_are_offered(tmp_path: Path) -> None:
    found = verdict(tmp_path / "reach", dict.fromkeys(SAMPLERS, EVEN), RealTimeBudget(20, 3))
    assert found.advice == (
        "Use free: it samples the law of ddpm at 5.00× its speed. "
        "Faster, but of another law: short at 10.0× and ddim (approximate) at 20.0×."
    )
    assert [(pick.title, pick.row.sampler) for pick in found.picks] == [
        ("Fastest with the law of ddpm", "free"),
        ("Fastest exact sampler", "short"),
        ("Fastest of any kind", "ddim"),
    ]
    same, short, few = (" ".join(pick.remarks) for pick in found.picks)
    assert "the law of ddpm, so also its success rate" in same and "no more than chance (p = 1.00)" in same
    assert "Keeps up with the robot: p95 is 109 ms, 3 actions at 20 Hz last 150 ms" in same
    assert "its own chain of 20 steps, whose law is not that of ddpm" in short
    assert "Approximate" in few and "do not exclude a loss of up to" in few


def test_a_loss_is_said_where_the_sampler_is_offered(tmp_path: Path) -> None:
    outcomes = {"ddpm": [True] * 60, "free": [True] * 60, "ddim": [True] * 30 + [False] * 30}
    found = verdict(tmp_path / "reach", outcomes)
    assert found.advice.endswith("ddim (approximate) at 20.0× with 50 points less success.")
    assert "It succeeds less often than ddpm" in found.picks[-1].remarks[1]


def test_the_same_law_with_another_success_is_suspicious(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "reach", episodes({"ddpm": [True] * 60, "free": EVEN}), timed(["ddpm", "free"]))
    (grave,) = [caution.text for caution in warnings_of(read_task(folder)) if caution.grave]
    assert grave.startswith("free succeeds less often than ddpm: \u221250.0 points") and "is not exact" in grave


def test_no_sampler_is_praised_that_is_no_faster(tmp_path: Path) -> None:
    found = verdict(tmp_path / "reach", {"ddpm": EVEN})
    assert found.advice == "No sampler with the law of ddpm is faster than ddpm itself."
    assert [pick.row.sampler for pick in found.picks] == ["ddpm"]
    found = verdict(tmp_path / "again" / "reach", {"ddpm": EVEN, "short": EVEN})
    assert "No sampler with the law of ddpm is faster" in found.advice and "short at 10.0×" in found.advice


def test_without_latency_or_reference_less_is_said(tmp_path: Path) -> None:
    untimed = recommend(read_task(write_folder(tmp_path / "a", episodes({"ddpm": EVEN}, "a"))))
    assert "nothing can be said about which sampler is fastest" in untimed.advice and not untimed.picks
    alone = verdict(tmp_path / "b" / "reach", {"ddim": EVEN})
    assert alone.advice == "Fastest: ddim (approximate), 26.2 ms a chunk. There is no sampler to compare it with."


def test_a_law_is_known_from_recipes_of_this_library_alone() -> None:
    assert (
        target_distribution_of(SAMPLERS["free"]["recipe"])
        == target_distribution_of(SAMPLERS["ddpm"]["recipe"])
        == TargetDistribution(100)
    )
    assert target_distribution_of(SAMPLERS["short"]["recipe"]) == TargetDistribution(20)
    matched = {"_target_": "specpolicy.samplers.sequential", "num_inference_steps": 20, "analytic": True}
    assert target_distribution_of(matched) == TargetDistribution(20, matched=True) != TargetDistribution(20)
    assert (str(TargetDistribution(20)), str(TargetDistribution(20, matched=True))) == ("20 steps", "20 matched steps")
    for name in ("recycled", "linear_block20", "auto"):
        recipe = to_container(compose("rollout", [f"sampler={name}"]).sampler)
        compiled = {"_target_": "specpolicy.samplers.compiled", "sampler": recipe}
        assert (
            target_distribution_of(recipe)
            == target_distribution_of(compiled)
            == TargetDistribution(20 if name.endswith("20") else 100)
        )
    for strange in (None, "SequentialSampler(K=100)", {"_target_": "mine.sampler", "num_inference_steps": 100}):
        assert target_distribution_of(strange) is None


def test_acceptance_counts_accepted_steps_and_the_first_rejection() -> None:
    # Steps 0-3 drafted, 2 accepted, 2 rejected; 3-6 drafted and accepted; 7 needs no draft; 8 drafted and rejected.
    one = CallLog(True, [1], [3], [9], [[[0, 2], [3, 4], [8, 0], [9, 0]]], [[4, 4, 1, 0]])
    found = acceptance_of(one)
    assert found is not None
    np.testing.assert_allclose(found.position, [5, 15, 25, 35, 45, 55, 65, 85])
    np.testing.assert_allclose(found.rate, [1, 1, 0, 1, 1, 1, 1, 0])
    assert found.overall == pytest.approx(6 / 8)
    assert acceptance_of(CallLog(True, [1], [3], [9], one.rounds)) is None
    assert acceptance_of(CallLog(True, [1], [3], [9])) is None


def test_numbers_as_they_are_shown() -> None:
    assert (milliseconds(3.274), milliseconds(54.12), milliseconds(132.8)) == ("3.27", "54.1", "133")
    assert (times(3.756), times(19.45), points(-0.0204), points(0.05)) == ("3.76×", "19.4×", "\u22122.0", "+5.0")
    assert (p_value(0.852), p_value(0.0123), ranges([3, 9, 7, 8, 3])) == ("0.85", "0.01", "3, 7–9")
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")
