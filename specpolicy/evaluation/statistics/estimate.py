"""A number with its interval, and the checks that every statistic makes of its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class StatisticsError(ValueError):
    """The data cannot answer the question: empty, not finite, or of lengths that do not match."""


class Estimate(NamedTuple):
    """A point estimate and a confidence interval around it, in the same unit."""

    value: float
    low: float
    high: float


def finite_vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """``values`` as a vector of floats. Raises :class:`StatisticsError` if it is empty, not flat, or not finite."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise StatisticsError(f"{name}: expected one list of numbers, got an array of shape {vector.shape}")
    if len(vector) == 0:
        raise StatisticsError(f"{name}: there are no measurements; at least one is needed")
    bad = int(np.sum(~np.isfinite(vector)))
    if bad:
        raise StatisticsError(
            f"{name}: {bad} of {len(vector)} values are NaN or infinite; remove or explain them first"
        )
    return vector


def same_length(first: Sequence[Any] | NDArray[Any], second: Sequence[Any] | NDArray[Any], what: str) -> None:
    """Raise :class:`StatisticsError` unless both have as many entries: ``what`` is paired entry by entry."""
    if len(first) != len(second):
        raise StatisticsError(
            f"{what} are paired entry by entry, but there are {len(first)} on one side and {len(second)} on the other; "
            "keep only what both sides measured, in the same order"
        )


def confidence_level(confidence: float) -> float:
    """``confidence`` itself. Raises :class:`StatisticsError` unless it lies strictly between 0 and 1."""
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")
    return confidence
