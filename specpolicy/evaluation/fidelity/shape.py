"""What a set of action chunks drawn at one observation looks like: spread, modes, smoothness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..statistics.estimate import StatisticsError

Chunks = NDArray[np.floating]
"""Action chunks ``(n, time, action)`` drawn at one observation."""

_SURROGATES = 19
"""Gaussian samples that the two groups of a sample are held against: a chance of 1/20 to be taken for two modes."""


def spread(chunks: Chunks) -> float:
    """Root of the mean squared distance from the mean chunk, in the actions' unit."""
    flat = chunks.reshape(len(chunks), -1).astype(np.float64)
    return float(np.sqrt(np.mean(np.sum((flat - flat.mean(0)) ** 2, axis=1))))


def roughness(chunks: Chunks) -> float:
    """Mean norm of the second difference of successive actions: 0 for constant velocity. Needs three actions."""
    second = np.diff(chunks.astype(np.float64), n=2, axis=1)
    return float(np.mean(np.linalg.norm(second, axis=-1)))


class Modes(NamedTuple):
    """Two groups found in a reference sample by 2-means.

    Attributes:
        centres: shape ``(2, d)``, the rarer group first.
        separation: Ashman's D = √2 |μ₁ − μ₂| / √(s₁² + s₂²) along the line through the centres.
        gaussian: the largest separation among Gaussian samples of the same size, mean and covariance. 2-means cuts
            those in two as well, and the more cleanly the more dimensions there are.
    """

    centres: NDArray[np.float64]
    separation: float
    gaussian: float

    @property
    def two(self) -> bool:
        """Whether the groups lie further apart than any Gaussian's."""
        return self.separation > self.gaussian

    def share(self, chunks: Chunks) -> float:
        """Share of ``chunks`` that lie nearer to the rarer group's centre."""
        flat = chunks.reshape(len(chunks), -1)
        nearer = np.linalg.norm(flat[:, None] - self.centres, axis=-1).argmin(axis=1)
        return float(np.mean(nearer == 0))


def find_modes(chunks: Chunks, seed: int = 0) -> Modes:
    """Split a reference sample into two groups and hold them against Gaussian samples drawn with ``seed``."""
    flat = chunks.reshape(len(chunks), -1).astype(np.float64)
    if len(flat) < 8:
        raise StatisticsError(f"{len(flat)} chunks do not show modes; draw at least eight, better a hundred")
    centres, separation = _two_groups(flat)
    rng = np.random.default_rng(seed)
    centred = (flat - flat.mean(0)) / np.sqrt(len(flat) - 1)
    # Rows of weights times the centred data have its covariance, whatever the number of dimensions.
    draws = (rng.normal(size=(len(flat), len(flat))) @ centred for _ in range(_SURROGATES))
    return Modes(centres, separation, max(_two_groups(draw)[1] for draw in draws))


def _two_groups(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Centres of 2-means, the rarer first, and their separation; begun at both ends of the widest direction."""
    from scipy.cluster.vq import kmeans2

    centred = flat - flat.mean(0)
    if not centred.any():
        return flat[:2], 0.0
    _, weights = np.linalg.eigh(centred @ centred.T)  # the small side: chunks are fewer than their coordinates
    reach = weights[:, -1] @ centred / np.sqrt(len(flat))
    centres, label = kmeans2(flat, flat.mean(0) + np.stack([-reach, reach]), minit="matrix", missing="warn")
    sizes = np.bincount(label, minlength=2)
    if sizes.min() == 0:
        return centres, 0.0
    axis = (centres[1] - centres[0]) / np.linalg.norm(centres[1] - centres[0])
    first, second = (flat[label == group] @ axis for group in (0, 1))
    scatter = np.sqrt(first.var() + second.var())
    separation = np.sqrt(2) * abs(first.mean() - second.mean()) / max(scatter, 1e-12)
    return centres[np.argsort(sizes, kind="stable")], float(separation)
