"""Estimates with confidence intervals, and exact paired tests.

Bootstrap and Student's intervals are scipy's. What scipy lacks is here: Clopper and Pearson's interval for clustered
trials, the exact sign-flip test, and the standard error of a ratio between clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Return ``values`` as a vector of floats.

    Args:
        values: one number for each measurement.
        name: what they are, for error messages.

    Raises:
        StatisticsError: empty, not one-dimensional, or not finite.
    """
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
    """Check that two sequences can be paired entry by entry.

    Args:
        first: one side of the pairs.
        second: the other side.
        what: what is paired, for the error message.

    Raises:
        StatisticsError: the lengths differ.
    """
    if len(first) != len(second):
        raise StatisticsError(
            f"{what} are paired entry by entry, but there are {len(first)} on one side and {len(second)} on the other; "
            "keep only what both sides measured, in the same order"
        )


def confidence_level(confidence: float) -> float:
    """Check a confidence level and return it.

    Args:
        confidence: in (0, 1), e.g. 0.95.

    Raises:
        StatisticsError: it is outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")
    return confidence


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Average independent estimates with equal weights.

    The distances from value to bound are added in quadrature, on either side by itself, so that the asymmetry of the
    single intervals is kept (MOVER, Zou and Donner 2008). With one estimate it is that estimate.

    Args:
        estimates: with intervals of one confidence level.

    Returns:
        The mean, with an interval of the same confidence level.

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


def bootstrap_interval(
    data: Sequence[ArrayLike],
    statistic: Callable[..., Any],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Compute a statistic and its percentile bootstrap interval.

    Args:
        data: one or more vectors of one length; entries of the same index are resampled together.
        statistic: ``statistic(*data, axis=...)``, vectorized over the other axes.
        confidence: coverage of the interval, in (0, 1).
        resamples: number of bootstrap resamples.
        seed: of the resampling, so that the same data give the same interval.

    Returns:
        The statistic of the data and its interval.

    Raises:
        StatisticsError: fewer than two entries, vectors of different lengths, or values that are not finite.
    """
    from scipy.stats import bootstrap

    vectors = [finite_vector(vector, "measurements") for vector in data]
    for vector in vectors[1:]:
        same_length(vectors[0], vector, "measurements")
    if len(vectors[0]) < 2:
        raise StatisticsError("one measurement has no interval; take at least two, better several hundred")
    found = bootstrap(
        vectors,
        statistic,
        paired=len(vectors) > 1,
        vectorized=True,
        confidence_level=confidence_level(confidence),
        n_resamples=resamples,
        batch=max(1, 1_000_000 // len(vectors[0])),  # bounds the memory
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(statistic(*vectors, axis=-1)), float(found.low), float(found.high))


def quantile_interval(samples: ArrayLike, quantile: float, resamples: int = 2000) -> Estimate:
    """Compute a quantile and its 95 % bootstrap interval, in the unit of the samples.

    No interval reaches beyond the largest sample: for p99 take several hundred samples.

    Args:
        samples: the measurements, at least two.
        quantile: in (0, 1), e.g. 0.99.
        resamples: number of bootstrap resamples.

    Returns:
        The quantile and its interval.

    Raises:
        StatisticsError: fewer than two samples, not finite, or a quantile outside (0, 1).
    """
    if not 0 < quantile < 1:
        raise StatisticsError(f"a quantile lies between 0 and 1, got {quantile}; p99 is 0.99")

    def statistic(x: NDArray[np.float64], axis: int) -> Any:
        return np.quantile(x, quantile, axis=axis)

    return bootstrap_interval((samples,), statistic, resamples=resamples)


def ratio_of_medians(
    numerator: ArrayLike, denominator: ArrayLike, confidence: float = 0.95, resamples: int = 2000
) -> Estimate:
    """Compute ``median(numerator) / median(denominator)`` of paired measurements and its bootstrap interval.

    Args:
        numerator: durations, in the order in which they were taken.
        denominator: positive durations taken beside them, in the same order.
        confidence: coverage of the interval, in (0, 1).
        resamples: number of bootstrap resamples; whole pairs are drawn.

    Returns:
        The ratio and its interval.

    Raises:
        StatisticsError: fewer than two pairs, not finite, mismatched, or a denominator that is not positive.
    """
    below = finite_vector(denominator, "denominator")
    if np.any(below <= 0):
        raise StatisticsError("the denominator's measurements must be positive: they are durations")

    def statistic(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> Any:
        return np.median(x, axis=axis) / np.median(y, axis=axis)

    return bootstrap_interval((numerator, below), statistic, confidence, resamples)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Compute the mean of independent values with Student's interval.

    Args:
        values: one for each independent unit, e.g. the mean score on each seed; at least two.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        The mean and its interval.

    Raises:
        StatisticsError: fewer than two values, or not finite.
    """
    from scipy import stats

    vector = finite_vector(values, "values")
    if len(vector) < 2:
        raise StatisticsError("one value has no interval; take at least two, better a hundred")
    mean = float(vector.mean())
    reach = float(stats.t.ppf((1 + confidence_level(confidence)) / 2, len(vector) - 1) * stats.sem(vector))
    return Estimate(mean, mean - reach, mean + reach)


def sign_flip_test(differences: ArrayLike) -> float:
    """Compute the two-sided p value of the exact sign-flip test of whole-numbered paired differences.

    Under the null hypothesis the two methods are exchangeable on each seed, so each difference is as likely with the
    opposite sign. The distribution of the sum over all sign patterns is built up exactly, difference by difference,
    where ``scipy.stats.permutation_test`` would have to draw from the patterns of more than some twenty seeds. With one
    repeat a seed (differences -1, 0, 1) it is McNemar's exact test, ``scipy.stats.binomtest`` on the discordant pairs;
    with several repeats it does not take repeats from one initial state as independent.

    Args:
        differences: for each seed, successes of one method minus successes of the other.

    Returns:
        The p value.

    Raises:
        StatisticsError: empty, or not whole numbers.
    """
    values = finite_vector(differences, "differences")
    steps = np.abs(values).astype(np.int64)
    if np.any(steps != np.abs(values)):
        raise StatisticsError("differences must be whole numbers: counts of successes, not rates")
    reach, observed = int(steps.sum()), abs(int(values.sum()))
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for step in steps[steps > 0]:
        chance = 0.5 * (np.roll(chance, step) + np.roll(chance, -step))
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chance[sums >= observed].sum()))


def paired_difference(differences: ArrayLike) -> Estimate:
    """Compute the mean of paired differences with a 95 % interval that does not collapse where few pairs differ.

    It is Wald's interval after one pair in favour of either side has been added (Bonett and Price 2012).

    Args:
        differences: one for each seed, in [-1, 1]: success rate of one method minus that of the other.

    Returns:
        The mean difference and its interval.

    Raises:
        StatisticsError: empty, not finite, or outside [-1, 1].
    """
    values = finite_vector(differences, "differences")
    if np.any(np.abs(values) > 1):
        raise StatisticsError("differences of success rates lie between -1 and 1; divide counts by the repeats first")
    padded = np.append(values, (1.0, -1.0))
    centre, half = float(padded.mean()), _normal_quantile(0.95) * float(padded.std() / np.sqrt(len(padded)))
    return Estimate(float(values.mean()), max(-1.0, centre - half), min(1.0, centre + half))


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """Compute a proportion and Clopper and Pearson's exact interval.

    It is the rule of every success rate here, since its coverage never falls below the confidence level. Wilson's
    interval is shorter, and over 50 to 300 trials its coverage falls to 89.5 % near success rates of 1.

    Args:
        successes: how many trials succeeded, ``0 <= successes <= trials``.
        trials: how many there were, at least one.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        The proportion and its interval.

    Raises:
        StatisticsError: no trials, or impossible counts.
    """
    if not (trials > 0 and 0 <= successes <= trials and np.isfinite(trials)):
        raise StatisticsError(f"a success rate needs 0 <= successes <= trials and trials > 0, got {successes}/{trials}")
    return _exact_bounds(successes / trials, trials, confidence)


def clustered_clopper_pearson(successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Compute a proportion and its interval where trials come in clusters: repeats from each initial state.

    Repeats from one initial state resemble each other, so they count for less than independent trials. Clopper and
    Pearson's interval is taken with the effective number of trials (Korn and Graubard 1998): their number over the
    design effect, the variance of the rate between clusters over its binomial variance. That effect is estimated with
    one cluster of successes alone and one of failures alone added, since few failures say little of it, and lies
    between 1 and what clusters of equal outcomes would have. With one trial a cluster this is :func:`clopper_pearson`.

    Args:
        successes: successes in each cluster.
        trials: trials in each cluster, at least 1.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        The proportion and its interval.

    Raises:
        StatisticsError: empty, mismatched, or impossible counts.
    """
    wins, sizes = finite_vector(successes, "successes"), finite_vector(trials, "trials")
    same_length(wins, sizes, "successes and trials")
    if np.any(sizes < 1) or np.any(wins < 0) or np.any(wins > sizes):
        raise StatisticsError("each cluster needs 0 <= successes <= trials and at least one trial")
    total = float(sizes.sum())
    largest_effect = float(np.sum(sizes**2)) / total
    padded, size = np.append(wins, (0.0, largest_effect)), np.append(sizes, (largest_effect, largest_effect))
    rate = float(padded.sum() / size.sum())
    between = len(size) / (len(size) - 1) * float(np.sum((padded - rate * size) ** 2)) / float(size.sum()) ** 2
    effect = float(np.clip(between / (rate * (1 - rate) / float(size.sum())), 1, largest_effect))
    return _exact_bounds(float(wins.sum()) / total, total / effect, confidence)


def _exact_bounds(rate: float, trials: float, confidence: float) -> Estimate:
    """Invert the binomial tails; ``trials`` need not be whole, as ``scipy.stats.binomtest`` would want it."""
    from scipy.special import betaincinv

    tail, wins, losses = (1 - confidence_level(confidence)) / 2, rate * trials, (1 - rate) * trials
    low = 0.0 if rate == 0 else float(betaincinv(wins, losses + 1, tail))
    high = 1.0 if rate == 1 else float(betaincinv(wins + 1, losses, 1 - tail))
    return Estimate(rate, low, high)


def ratio_of_sums(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float]:
    """Compute ``sum(numerators) / sum(denominators)`` and its standard error over independent entries.

    Chunks of one episode resemble each other, and so do episodes from one initial state. The error of "network
    evaluations a chunk" is therefore taken between initial states: entry ``i`` holds the evaluations and the chunks of
    all episodes from the ``i``-th.

    Args:
        numerators: one for each entry.
        denominators: one for each entry, non-negative, not all zero.

    Returns:
        The ratio and its standard error, which is NaN with one entry.

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


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence_level(confidence) / 2)
