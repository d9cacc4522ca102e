"""Percentile-bootstrap intervals for latencies.

Calls are resampled as if they were independent. Slow drift of the machine makes the interval of a single quantile too
narrow; a ratio of paired calls, measured side by side, is spared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .estimate import Estimate, StatisticsError, confidence_level, finite_vector, same_length


def quantile_interval(
    samples: ArrayLike, quantile: float, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """A quantile and its bootstrap interval, in the unit of the samples.

    No interval reaches beyond the largest sample: for p99 take several hundred samples.

    Args:
        samples: the measurements.
        quantile: in ``(0, 1)``, e.g. 0.99.
        confidence: coverage of the interval.
        resamples: number of bootstrap resamples.
        seed: of the resampling, so that the same data give the same interval.

    Raises:
        StatisticsError: fewer than two samples, not finite, or a quantile outside ``(0, 1)``.
    """
    if not 0 < quantile < 1:
        raise StatisticsError(f"a quantile lies between 0 and 1, got {quantile}; p99 is 0.99")
    values = finite_vector(samples, "samples")

    def statistic(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.quantile(x, quantile, axis=axis)

    return _interval((values,), float(np.quantile(values, quantile)), statistic, confidence, resamples, seed)


def ratio_of_medians(
    numerator: ArrayLike, denominator: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """``median(numerator) / median(denominator)`` of paired measurements, with its bootstrap interval.

    Args:
        numerator, denominator: measurements taken side by side, in the same order; the denominator's positive.
        confidence: coverage of the interval.
        resamples: number of bootstrap resamples; whole pairs are drawn.
        seed: of the resampling.

    Raises:
        StatisticsError: fewer than two pairs, not finite, mismatched, or a denominator that is not positive.
    """
    above, below = finite_vector(numerator, "numerator"), finite_vector(denominator, "denominator")
    same_length(above, below, "measurements")
    if np.any(below <= 0):
        raise StatisticsError("the denominator's measurements must be positive: they are durations")

    def statistic(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(np.median(x, axis=axis) / np.median(y, axis=axis))

    value = float(np.median(above) / np.median(below))
    return _interval((above, below), value, statistic, confidence, resamples, seed)


def _interval(
    data: tuple[NDArray[np.float64], ...], value: float, statistic: Any, confidence: float, resamples: int, seed: int
) -> Estimate:
    confidence_level(confidence)
    if len(data[0]) < 2:
        raise StatisticsError("one measurement has no interval; take at least two, better several hundred")
    rng = np.random.default_rng(seed)
    size = len(data[0])
    batch = max(1, 1_000_000 // size)  # bounds the memory
    drawn: list[NDArray[np.float64]] = []
    for first in range(0, resamples, batch):
        entries = rng.integers(size, size=(min(batch, resamples - first), size))
        drawn.append(statistic(*(part[entries] for part in data), axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), (tail, 1 - tail))
    return Estimate(value, float(low), float(high))
