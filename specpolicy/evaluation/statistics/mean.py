"""The mean of measurements that are neither counts nor durations."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .estimate import Estimate, StatisticsError, confidence_level, finite_vector


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean of independent values with Student's interval.

    Args:
        values: one for each independent unit, e.g. the mean score on each seed.
        confidence: coverage of the interval.

    Raises:
        StatisticsError: fewer than two values, or not finite.
    """
    from scipy import stats

    vector = finite_vector(values, "values")
    if len(vector) < 2:
        raise StatisticsError("one value has no interval; take at least two, better a hundred")
    mean, error = float(vector.mean()), float(np.std(vector, ddof=1)) / math.sqrt(len(vector))
    reach = float(stats.t.ppf((1 + confidence_level(confidence)) / 2, len(vector) - 1)) * error
    return Estimate(mean, mean - reach, mean + reach)
