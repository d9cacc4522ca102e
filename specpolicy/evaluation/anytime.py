"""Paired comparisons that stay valid however often they are looked at, for runs that are extended.

A fixed-sample interval holds for the number of seeds that was fixed before. Who looks, and adds seeds until the result
pleases, will find a difference sooner or later. Here a bet is placed on every seed against a hypothetical mean; if the
hypothesis is true the capital is a supermartingale that starts at 1, and by Ville's inequality ever reaches 1/α with
probability α at most (Waudby-Smith and Ramdas 2024). The capital is the average over a grid of constant bets, so that
nothing is tuned. The price is a wider interval than that of a fixed number of seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specpolicy.evaluation.statistics import Estimate, StatisticsError, finite_vector

_BETS = 0.49 * 2.0 ** -np.arange(0, 6, 0.5)  # below ½, at which one seed could take all


def log_capital(differences: ArrayLike, mean: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the logarithm of the capital after each seed, of bets that the mean is larger, and that it is smaller.

    Args:
        differences: one for each seed, in [-1, 1], in the order in which the seeds were played.
        mean: the hypothetical mean difference, in [-1, 1].

    Returns:
        Both, as long as ``differences``: e-processes against "at most ``mean``" and against "at least ``mean``".

    Raises:
        StatisticsError: empty, not finite, or outside [-1, 1].
    """
    values = finite_vector(differences, "differences")
    if np.any(np.abs(values) > 1):
        raise StatisticsError("differences of success rates lie between -1 and 1; divide counts by the repeats first")
    steps = np.outer(_BETS, values - mean)

    def average(signed: NDArray[np.float64]) -> NDArray[np.float64]:
        logs = np.cumsum(np.log1p(signed), axis=1)
        return np.asarray(np.logaddexp.reduce(logs, axis=0) - np.log(len(_BETS)))

    return average(steps), average(-steps)


def anytime_p_value(differences: ArrayLike, mean: float = 0.0) -> float:
    """Compute a two-sided p value that may be looked at after every seed.

    Args:
        differences: see :func:`log_capital`.
        mean: the hypothetical mean difference; minus the margin for non-inferiority.

    Returns:
        Two over the largest capital of either side; with a true hypothesis it ever falls to α with probability α at
        most.
    """
    larger, smaller = log_capital(differences, mean)
    return float(min(1.0, 2 * np.exp(-max(larger.max(), smaller.max()))))


def confidence_sequence(differences: ArrayLike) -> Estimate:
    """Compute the mean of paired differences with a 95 % interval that covers after all numbers of seeds at once.

    Args:
        differences: see :func:`log_capital`.

    Returns:
        The mean difference and the interval of the means that were never rejected so far.
    """
    values = finite_vector(differences, "differences")
    wanted, centre = np.log(2 / 0.05), float(values.mean())
    low = _bisect(lambda mean: float(log_capital(values, mean)[0].max()) < wanted, -1.0, 1.0)
    high = -_bisect(lambda mean: float(log_capital(values, -mean)[1].max()) < wanted, -1.0, 1.0)
    return Estimate(centre, min(low, centre), max(high, centre))


def _bisect(kept: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest mean that is kept: those above it are, too, as the capital falls with the mean that it bets on."""
    if kept(low):
        return low
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return low
