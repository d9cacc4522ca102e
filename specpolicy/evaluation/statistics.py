"""A mean over chunks whose error is taken over initial states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
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


def quantile_interval(
    samples: ArrayLike, quantile: float, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """A quantile and its bootstrap interval, in the unit of the samples.

    No interval reaches beyond the largest sample: for p99 take several hundred samples.

    Args:
        samples: the measurements.
        quantile: in ``(0, 1)``, e.g. 0.99.
        confidence: coverage of the interval.
        resamples: number of bootstrap resamples.
        seed: of the resampling, so that the same data give the same interval.

    Raises:
        StatisticsError: fewer than two samples, not finite, or a quantile outside ``(0, 1)``.
    """
    if not 0 < quantile < 1:
        raise StatisticsError(f"a quantile lies between 0 and 1, got {quantile}; p99 is 0.99")
    values = finite_vector(samples, "samples")

    def statistic(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.quantile(x, quantile, axis=axis)

    return _interval((values,), float(np.quantile(values, quantile)), statistic, confidence, resamples, seed)


def ratio_of_medians(
    numerator: ArrayLike, denominator: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """``median(numerator) / median(denominator)`` of paired measurements, with its bootstrap interval.

    Args:
        numerator, denominator: measurements taken side by side, in the same order; the denominator's positive.
        confidence: coverage of the interval.
        resamples: number of bootstrap resamples; whole pairs are drawn.
        seed: of the resampling.

    Raises:
        StatisticsError: fewer than two pairs, not finite, mismatched, or a denominator that is not positive.
    """
    above, below = finite_vector(numerator, "numerator"), finite_vector(denominator, "denominator")
    same_length(above, below, "measurements")
    if np.any(below <= 0):
        raise StatisticsError("the denominator's measurements must be positive: they are durations")

    def statistic(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(np.median(x, axis=axis) / np.median(y, axis=axis))

    value = float(np.median(above) / np.median(below))
    return _interval((above, below), value, statistic, confidence, resamples, seed)


def _interval(
    data: tuple[NDArray[np.float64], ...], value: float, statistic: Any, confidence: float, resamples: int, seed: int
) -> Estimate:
    confidence_level(confidence)
    if len(data[0]) < 2:
        raise StatisticsError("one measurement has no interval; take at least two, better several hundred")
    rng = np.random.default_rng(seed)
    size = len(data[0])
    batch = max(1, 1_000_000 // size)  # bounds the memory
    drawn: list[NDArray[np.float64]] = []
    for first in range(0, resamples, batch):
        entries = rng.integers(size, size=(min(batch, resamples - first), size))
        drawn.append(statistic(*(part[entries] for part in data), axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), (tail, 1 - tail))
    return Estimate(value, float(low), float(high))


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean of independent values with Student's interval.

    Args:
        values: one for each independent unit, e.g. the mean score on each seed.
        confidence: coverage of the interval.

    Raises:
        StatisticsError: fewer than two values, or not finite.
    """
    from scipy import stats

    vector = finite_vector(values, "values")
    if len(vector) < 2:
        raise StatisticsError("one value has no interval; take at least two, better a hundred")
    mean, error = float(vector.mean()), float(np.std(vector, ddof=1)) / math.sqrt(len(vector))
    reach = float(stats.t.ppf((1 + confidence_level(confidence)) / 2, len(vector) - 1)) * error
    return Estimate(mean, mean - reach, mean + reach)


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
