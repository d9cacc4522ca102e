"""Intervals for a success rate (Wilson 1927), also where one initial state was tried several times."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from .estimate import Estimate, StatisticsError, confidence_level, finite_vector, same_length


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Estimate:
    """Wilson's score interval of a proportion.

    Args:
        successes: how many succeeded, ``0 <= successes <= trials``.
        trials: how many were tried; may be an effective number that is not whole.
        confidence: coverage of the interval.

    Raises:
        StatisticsError: no trials, or more successes than trials.
    """
    if not (trials > 0 and 0 <= successes <= trials and np.isfinite(trials)):
        raise StatisticsError(f"a success rate needs 0 <= successes <= trials and trials > 0, got {successes}/{trials}")
    z = NormalDist().inv_cdf(0.5 + confidence_level(confidence) / 2)
    rate, weight = successes / trials, z * z / trials
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * np.sqrt((rate * (1 - rate) + weight / 4) / trials)
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == trials else float(centre + half)
    return Estimate(rate, low, high)


def clustered_wilson(successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Wilson's interval where trials come in clusters: several repeats from each initial state.

    Repeats from one initial state resemble each other, so they count for less than independent trials. The number of
    trials is divided by the design effect, the variance of the rate between clusters over its binomial variance
    (Rao and Scott 1992), held between 1 and the mean cluster size; the latter is taken where all or none succeeded
    and the data say nothing of it. With one trial a cluster this is :func:`wilson`.

    Args:
        successes: successes in each cluster.
        trials: trials in each cluster, at least 1.
        confidence: coverage of the interval.

    Raises:
        StatisticsError: empty, mismatched, or impossible counts.
    """
    wins, sizes = finite_vector(successes, "successes"), finite_vector(trials, "trials")
    same_length(wins, sizes, "successes and trials")
    if np.any(sizes < 1) or np.any(wins < 0) or np.any(wins > sizes):
        raise StatisticsError("each cluster needs 0 <= successes <= trials and at least one trial")
    total, clusters = float(sizes.sum()), len(sizes)
    rate, largest_effect = float(wins.sum()) / total, total / clusters
    binomial = rate * (1 - rate) / total
    if clusters < 2 or binomial == 0:
        effect = largest_effect
    else:
        between = clusters / (clusters - 1) * float(np.sum((wins - rate * sizes) ** 2)) / total**2
        effect = float(np.clip(between / binomial, 1, largest_effect))
    return wilson(min(rate * total / effect, total / effect), total / effect, confidence)
