"""Energy distance: zero for equal laws and positive for any others (Székely and Rizzo 2013)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..statistics.estimate import StatisticsError

Samples = NDArray[np.floating]


class EnergyDistance(NamedTuple):
    """Two samples compared.

    Attributes:
        distance: unbiased estimate of 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖, in the samples' unit; chance may bring
            it below zero.
        coefficient: the distance over 2 E‖X − Y‖, from 0 (equal laws) to 1 (two different constants).
    """

    distance: float
    coefficient: float


def energy_distance(first: Samples, second: Samples) -> EnergyDistance:
    """Compare samples of shapes ``(n, d)`` and ``(m, d)``, at least two rows each.

    Raises:
        StatisticsError: other shapes, or values that are not finite.
    """
    pooled = _pooled(first, second)
    return _from_distances(_distances(pooled), np.arange(len(pooled)) < len(first))


def permutation_test(pairs: list[tuple[Samples, Samples]], permutations: int = 500, seed: int = 0) -> float:
    """Do all these pairs come from equal laws? Rows are exchanged within each pair and never between pairs.

    Each pair's distance is put in units of its own scatter under relabelling, so that a pair of widely spread samples
    does not drown the others; then they are added.

    Args:
        pairs: samples ``(n, d)`` and ``(m, d)``, one pair an observation, say.
        permutations: random relabellings, at least two; the p-value is at least ``1 / (permutations + 1)``.
        seed: of the relabellings.

    Returns:
        The p-value of the hypothesis that the two laws of every pair are equal.
    """
    if not pairs or permutations < 2:
        raise StatisticsError(
            f"no pairs, or too few permutations ({permutations}); a test takes a pair and two of them"
        )
    rng = np.random.default_rng(seed)
    observed, relabelled = 0.0, np.zeros(permutations)
    for first, second in pairs:
        distances = _distances(_pooled(first, second))
        label = np.arange(len(distances)) < len(first)
        chance = np.array([_from_distances(distances, rng.permutation(label)).distance for _ in range(permutations)])
        scatter = max(float(chance.std()), np.finfo(float).tiny)
        observed += _from_distances(distances, label).distance / scatter
        relabelled += chance / scatter
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


def _from_distances(distances: NDArray[np.float64], label: NDArray[np.bool_]) -> EnergyDistance:
    """From all distances and who belongs to the first sample; two products with the matrix give all three sums."""
    one, other = label.astype(np.float64), (~label).astype(np.float64)
    n, m = one.sum(), other.sum()
    to_one, to_other = distances @ one, distances @ other
    between = 2 * (other @ to_one) / (n * m)
    within = (one @ to_one) / (n * (n - 1)) + (other @ to_other) / (m * (m - 1))
    distance = float(between - within)
    return EnergyDistance(distance, distance / float(between) if between > 0 else 0.0)
