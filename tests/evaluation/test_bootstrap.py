"""Intervals of latencies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from specpolicy.evaluation.statistics import StatisticsError, quantile_interval, ratio_of_medians, ratio_of_sums


def test_quantile_interval_is_that_of_scipy() -> None:
    samples = np.random.default_rng(0).lognormal(size=300)
    ours = quantile_interval(samples, 0.95, resamples=5000)
    theirs = bootstrap(
        (samples,), lambda x, axis: np.quantile(x, 0.95, axis=axis), method="percentile", n_resamples=5000
    ).confidence_interval
    assert ours.value == np.quantile(samples, 0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.05)


def test_median_interval_covers() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        _, low, high = quantile_interval(rng.normal(size=101), 0.5, resamples=400)
        hits += low <= 0 <= high
    assert 0.9 < hits / 200 <= 0.99


def test_the_same_data_give_the_same_interval() -> None:
    samples = np.arange(50.0)
    assert quantile_interval(samples, 0.5) == quantile_interval(samples, 0.5)


def test_pairs_cancel_what_hits_both_sides() -> None:
    rng = np.random.default_rng(2)
    drift = rng.lognormal(sigma=0.5, size=400)
    value, low, high = ratio_of_medians(3 * drift, drift)
    assert (value, low, high) == pytest.approx((3, 3, 3))
    shuffled = ratio_of_medians(3 * drift, rng.permutation(drift))
    assert shuffled.high - shuffled.low > 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantile_interval([], 0.5), "no measurements"),
        (lambda: quantile_interval([1.0, np.nan], 0.5), "1 of 2 values are NaN"),
        (lambda: quantile_interval([1.0], 0.5), "at least two"),
        (lambda: quantile_interval([1.0, 2.0], 99), "p99 is 0.99"),
        (lambda: ratio_of_medians([1.0, 2.0], [1.0]), "paired"),
        (lambda: ratio_of_medians([1.0, 2.0], [1.0, 0.0]), "positive"),
        (lambda: ratio_of_sums([1.0], [0.0]), "zero"),
        (lambda: quantile_interval([[1.0]], 0.5), "shape"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        call()  # type: ignore[operator]


def test_ratio_of_sums_takes_its_error_between_episodes() -> None:
    chunks = np.array([2.0, 3.0, 5.0, 10.0])
    assert ratio_of_sums(7 * chunks, chunks) == pytest.approx((7, 0))
    mean, error = ratio_of_sums([10.0, 14.0], [1.0, 1.0])
    assert (mean, error) == pytest.approx((12, 2))
    assert np.isnan(ratio_of_sums([10.0], [2.0])[1])
