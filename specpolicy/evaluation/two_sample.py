"""Comparison of two samples: energy distance (Székely and Rizzo 2013) and a permutation test of equality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specpolicy.evaluation.statistics import StatisticsError

Samples = NDArray[np.floating]


class EnergyDistance(NamedTuple):
    """Energy distance of two samples.

    Attributes:
        distance: unbiased estimate of 2 E‖X - Y‖ - E‖X - X′‖ - E‖Y - Y′‖, in the samples' unit; chance may bring
            it below zero.
        coefficient: the distance over 2 E‖X - Y‖, from 0 (equal distributions) to 1 (two different constants).
    """

    distance: float
    coefficient: float


def energy_distance(first: Samples, second: Samples) -> EnergyDistance:
    """Estimate the energy distance of two samples without bias.

    Args:
        first: shape ``(n, d)``, at least two rows.
        second: shape ``(m, d)``, at least two rows.

    Returns:
        The distance, and its share of the mean distance between the samples.

    Raises:
        StatisticsError: other shapes, or values that are not finite.
    """
    between, within = _mean_distances(_distances(_pooled(first, second)), np.arange(len(first)))
    distance = float(between - within)
    return EnergyDistance(distance, distance / float(between) if between > 0 else 0.0)


def equality_p_value(pairs: Sequence[tuple[Samples, Samples]], permutations: int = 500, seed: int = 0) -> float:
    """Test whether the two samples of every pair come from one distribution.

    Rows are exchanged within each pair and never between pairs (``scipy.stats.permutation_test``). Each pair's energy
    distance is divided by its own standard deviation under relabelling, so that a pair of widely spread samples does
    not outweigh the others; then they are added.

    Args:
        pairs: samples ``(n, d)`` and ``(m, d)``, e.g. one pair for each observation.
        permutations: random relabellings, at least two; the p value is at least ``1 / (permutations + 1)``.
        seed: of the relabellings.

    Returns:
        The p value of the hypothesis that the two distributions of every pair are equal.

    Raises:
        StatisticsError: no pairs, too few permutations, or samples that cannot be compared.
    """
    from scipy.stats import permutation_test

    if not pairs or permutations < 2:
        raise StatisticsError(
            f"no pairs, or too few permutations ({permutations}); a test takes a pair and two of them"
        )
    rng = np.random.default_rng(seed)
    observed, relabelled = 0.0, np.zeros(permutations)
    for first, second in pairs:
        distances = _distances(_pooled(first, second))
        if math.comb(len(distances), len(first)) <= permutations:
            raise StatisticsError(f"{len(first)} and {len(second)} rows have fewer than {permutations} relabellings")

        def statistic(
            rows: NDArray[np.float64], others: NDArray[np.float64], axis: int, matrix: Any = distances
        ) -> Any:
            between, within = _mean_distances(matrix, rows.astype(int))
            return between - within

        found = permutation_test(
            (np.arange(len(first)), np.arange(len(first), len(distances))),
            statistic,
            permutation_type="independent",
            vectorized=True,
            n_resamples=permutations,
            batch=max(1, 4_000_000 // len(distances)),
            alternative="greater",
            rng=rng,
        )
        scatter = max(float(found.null_distribution.std()), np.finfo(float).tiny)
        observed += float(found.statistic) / scatter
        relabelled += found.null_distribution / scatter
    return (1 + int(np.sum(relabelled >= observed))) / (1 + permutations)


def _pooled(first: Samples, second: Samples) -> NDArray[np.float64]:
    shapes = first.shape, second.shape
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise StatisticsError(f"samples of shapes (n, d) and (m, d) with n, m >= 2 are compared, not {shapes}")
    pooled = np.concatenate([first, second]).astype(np.float64)
    if not np.isfinite(pooled).all():
        raise StatisticsError("the samples hold NaN or infinite values")
    return pooled


def _distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.distance import pdist, squareform

    return squareform(pdist(points))


def _mean_distances(
    distances: NDArray[np.float64], rows: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Twice the mean distance between the samples, and the sum of their mean distances within.

    Args:
        distances: between all points, shape ``(n + m, n + m)``.
        rows: which points form the first sample, shape ``(..., n)``.
    """
    one = np.zeros((*rows.shape[:-1], len(distances)))
    np.put_along_axis(one, rows, 1.0, axis=-1)
    other = 1.0 - one
    n, m = rows.shape[-1], len(distances) - rows.shape[-1]
    to_one, to_other = one @ distances, other @ distances
    between = 2 * np.sum(other * to_one, axis=-1) / (n * m)
    within = np.sum(one * to_one, axis=-1) / (n * (n - 1)) + np.sum(other * to_other, axis=-1) / (m * (m - 1))
    return between, within
