"""Success rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from specpolicy.evaluation.statistics import StatisticsError, clustered_wilson, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 3), (437, 500), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_that_of_scipy(successes: int, trials: int, confidence: float) -> None:
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    rate, low, high = wilson(successes, trials, confidence)
    assert rate == successes / trials
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2), (1, float("inf"))])
def test_wilson_refuses_impossible_counts(successes: float, trials: float) -> None:
    with pytest.raises(StatisticsError, match="0 <= successes <= trials"):
        wilson(successes, trials)


def test_confidence_is_checked() -> None:
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        wilson(1, 2, confidence=95)


def test_single_trials_are_no_clusters() -> None:
    outcomes = [1, 0, 1, 1, 0, 1, 1, 1]
    assert clustered_wilson(outcomes, [1] * 8) == pytest.approx(wilson(6, 8))


def test_repeats_that_always_agree_add_nothing() -> None:
    outcomes = np.array([1, 0, 1, 1, 0, 1, 1, 1] * 5)
    repeated = clustered_wilson(3 * outcomes, np.full(40, 3))
    assert repeated == pytest.approx(wilson(outcomes.sum(), 40), abs=0.01)


def test_unanimous_success_counts_seeds_not_repeats() -> None:
    assert clustered_wilson([3] * 20, [3] * 20) == pytest.approx(wilson(20, 20))


def test_clustered_interval_covers() -> None:
    """Seeds of very different difficulty, five repeats each: the plain interval would cover far less than 95 %."""
    rng = np.random.default_rng(0)
    covered, plain = 0, 0
    for _ in range(400):
        chance = rng.beta(0.5, 0.5, size=60)
        wins = rng.binomial(5, chance)
        _, low, high = clustered_wilson(wins, np.full(60, 5))
        covered += low <= 0.5 <= high
        _, low, high = wilson(wins.sum(), 300)
        plain += low <= 0.5 <= high
    assert covered / 400 > 0.92
    assert plain / 400 < 0.85


@pytest.mark.parametrize(
    ("successes", "trials", "message"),
    [([], [], "no measurements"), ([1, 1], [1], "paired"), ([2], [1], "successes <= trials"), ([np.nan], [1], "NaN")],
)
def test_bad_counts_are_refused(successes: list[float], trials: list[float], message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        clustered_wilson(successes, trials)
