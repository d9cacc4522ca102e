"""Two methods tried on the same seeds: is one better, and by how much?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from .estimate import Estimate, StatisticsError, confidence_level, finite_vector, same_length


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided p value of McNemar's exact test.

    Only the pairs in which exactly one side succeeded matter: under the null hypothesis each of them is a fair coin.

    Args:
        first, second: success of either method, seed by seed in the same order.

    Raises:
        StatisticsError: empty, or of different lengths.
    """
    same_length(first, second, "outcomes")
    a, b = finite_vector(first, "first"), finite_vector(second, "second")
    only_first, only_second = int(np.sum((a > 0) & (b == 0))), int(np.sum((a == 0) & (b > 0)))
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def sign_flip_test(differences: ArrayLike) -> float:
    """Two-sided p value of the exact sign-flip test of whole-numbered paired differences.

    Under the null hypothesis the two methods are exchangeable on each seed, so each difference is as likely with the
    opposite sign. The law of the sum over all sign patterns is built up exactly, difference by difference. With one
    repeat a seed (differences −1, 0, 1) this is McNemar's exact test; with several repeats it does not pretend that
    repeats from one initial state are independent.

    Args:
        differences: for each seed, successes of one method minus successes of the other.

    Raises:
        StatisticsError: empty, or not whole numbers.
    """
    values = finite_vector(differences, "differences")
    steps = np.abs(values).astype(np.int64)
    if np.any(steps != np.abs(values)):
        raise StatisticsError("differences must be whole numbers: counts of successes, not rates")
    reach, observed = int(steps.sum()), abs(int(values.sum()))
    law = np.zeros(2 * reach + 1)
    law[reach] = 1.0
    for step in steps[steps > 0]:
        law = 0.5 * (np.roll(law, step) + np.roll(law, -step))
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(law[sums >= observed].sum()))


def paired_difference(differences: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of paired differences with an interval that keeps its width when few pairs differ.

    The interval is Wald's after one imagined pair in favour of either side has been added (Bonett and Price 2012).

    Args:
        differences: one for each seed, in ``[-1, 1]``: success rate of one method minus that of the other.
        confidence: coverage of the interval.

    Raises:
        StatisticsError: empty, not finite, or outside ``[-1, 1]``.
    """
    values = finite_vector(differences, "differences")
    if np.any(np.abs(values) > 1):
        raise StatisticsError("differences of success rates lie between -1 and 1; divide counts by the repeats first")
    z = NormalDist().inv_cdf(0.5 + confidence_level(confidence) / 2)
    padded = np.append(values, (1.0, -1.0))
    centre, half = float(padded.mean()), z * float(padded.std() / np.sqrt(len(padded)))
    return Estimate(float(values.mean()), max(-1.0, centre - half), min(1.0, centre + half))
