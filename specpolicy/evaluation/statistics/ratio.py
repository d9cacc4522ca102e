"""A mean over chunks whose error is taken over initial states."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .estimate import StatisticsError, finite_vector, same_length


def ratio_of_sums(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float]:
    """``sum(numerators) / sum(denominators)`` and its standard error over independent entries.

    Chunks of one episode resemble each other, and so do episodes from one initial state. The error of "passes a chunk"
    is therefore taken between initial states: entry ``i`` holds the passes and the chunks of all episodes from the
    ``i``-th. With one entry the error is NaN.

    Args:
        numerators: one for each entry.
        denominators: one for each entry, non-negative, not all zero.

    Raises:
        StatisticsError: empty, mismatched, negative or all-zero denominators.
    """
    above, below = finite_vector(numerators, "numerators"), finite_vector(denominators, "denominators")
    same_length(above, below, "numerators and denominators")
    if np.any(below < 0) or below.sum() == 0:
        raise StatisticsError("denominators must not be negative, and not all zero")
    ratio, count = float(above.sum() / below.sum()), len(above)
    if count < 2:
        return ratio, float("nan")
    residuals = above - ratio * below
    return ratio, float(np.sqrt(count / (count - 1) * np.sum(residuals**2)) / below.sum())
