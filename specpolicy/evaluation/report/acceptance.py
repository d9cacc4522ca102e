"""How often a drafted step is accepted, along the chain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..latency import CallLog
from ..statistics import ratio_of_sums

PARTS = 25


@dataclass(frozen=True)
class Acceptance:
    """Acceptance by part of the chain; entry ``i`` of each array belongs to one part.

    Attributes:
        position: middle of the part, 0 (noise) to 100 (action).
        rate: share of its drafted steps that were accepted, of those that verification reached.
        error: standard error of the rate, between calls; NaN where there is no telling.
        overall: the share over the whole chain.
    """

    position: NDArray[np.float64]
    rate: NDArray[np.float64]
    error: NDArray[np.float64]
    overall: float


def acceptance_of(log: CallLog) -> Acceptance | None:
    """Acceptance of a sampler, None if it has no rounds or its log does not say how much each of them drafted.

    A round that starts at ``s``, drafts ``d`` steps and accepts ``a`` of them has accepted the steps ``s … s + a − 1``
    and, if ``a < d``, rejected step ``s + a``; it says nothing of later ones.
    """
    if not log.rounds or not log.drafted:
        return None
    steps = max(start + accepted + 1 for call in log.rounds for start, accepted in call)
    parts = min(PARTS, steps)
    tried, taken = np.zeros((2, len(log.rounds), steps))
    for call, (rounds, drafted) in enumerate(zip(log.rounds, log.drafted, strict=True)):
        for (start, accepted), length in zip(rounds, drafted, strict=True):
            tried[call, start : start + accepted + (accepted < length)] += 1
            taken[call, start : start + accepted] += 1
    edges = np.linspace(0, steps, parts + 1).round().astype(int)[:-1]
    tried, taken = np.add.reduceat(tried, edges, axis=1), np.add.reduceat(taken, edges, axis=1)
    known = np.flatnonzero(tried.sum(axis=0))
    if not len(known):
        return None
    found = np.array([ratio_of_sums(taken[:, part], tried[:, part]) for part in known])
    middles = 100 * (edges + np.append(edges[1:], steps)) / 2 / steps
    return Acceptance(middles[known], found[:, 0], found[:, 1], float(taken.sum() / tried.sum()))
