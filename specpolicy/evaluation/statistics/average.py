"""One number over several tasks, from an estimate for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .estimate import Estimate, StatisticsError


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each given the same weight, with an interval of their own confidence.

    The distances from value to bound are added in quadrature, on either side by itself, so that the asymmetry of the
    single intervals is kept (MOVER, Zou and Donner 2008). With one estimate it is that estimate.

    Raises:
        StatisticsError: there are none, or they are not finite.
    """
    numbers = np.asarray(estimates, dtype=np.float64)
    if numbers.size == 0 or not np.all(np.isfinite(numbers)):
        raise StatisticsError("a mean takes at least one estimate, all of them finite")
    value, low, high = numbers.T
    mean = float(value.mean())
    return Estimate(
        mean,
        mean - float(np.linalg.norm(value - low)) / len(value),
        mean + float(np.linalg.norm(high - value)) / len(value),
    )
