"""Means over tasks."""

from __future__ import annotations

import numpy as np
import pytest

from specpolicy.evaluation.statistics import Estimate, StatisticsError, mean_of_estimates, wilson


def test_one_estimate_is_its_own_mean() -> None:
    assert mean_of_estimates([Estimate(0.5, 0.3, 0.6)]) == pytest.approx((0.5, 0.3, 0.6))


def test_distances_add_in_quadrature_on_either_side() -> None:
    mean = mean_of_estimates([Estimate(0.5, 0.2, 0.6), Estimate(0.9, 0.5, 0.9)])
    assert mean == pytest.approx((0.7, 0.7 - np.hypot(0.3, 0.4) / 2, 0.7 + 0.1 / 2))


def test_the_interval_of_a_mean_rate_covers() -> None:
    rng, chances, covered = np.random.default_rng(0), (0.5, 0.9, 0.98), 0
    for _ in range(1000):
        _, low, high = mean_of_estimates([wilson(rng.binomial(60, chance), 60) for chance in chances])
        covered += low <= np.mean(chances) <= high
    assert 0.93 < covered / 1000 < 0.985


@pytest.mark.parametrize("estimates", [[], [Estimate(0.5, float("nan"), 0.6)]])
def test_nothing_has_no_mean(estimates: list[Estimate]) -> None:
    with pytest.raises(StatisticsError, match="at least one estimate"):
        mean_of_estimates(estimates)
