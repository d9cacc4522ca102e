"""Every interval and test against scipy, against enumeration, or against how often it covers in a simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from specpolicy.evaluation.statistics import (
    Estimate,
    StatisticsError,
    bootstrap_interval,
    clopper_pearson,
    clustered_clopper_pearson,
    mean_interval,
    mean_of_estimates,
    paired_difference,
    quantile_interval,
    ratio_of_medians,
    ratio_of_sums,
    sign_flip_test,
)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact test, which is scipy's binomial test of the discordant pairs."""
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return stats.binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0


# Proportions


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 3), (437, 500), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_clopper_pearson_is_scipys(successes: int, trials: int, confidence: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    found = clopper_pearson(successes, trials, confidence)
    assert found == pytest.approx((successes / trials, expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("trials", [50, 100, 300])
def test_printed_intervals_cover(trials: int) -> None:
    """The rule in exact sums: never below 95 %, where Wilson's interval falls below 94 %."""
    wins = np.arange(trials + 1)
    low, high = np.array([clopper_pearson(int(won), trials)[1:] for won in wins]).T
    wilson = np.array([stats.binomtest(won, trials).proportion_ci(0.95, method="wilson") for won in wins.tolist()])
    least, least_wilson = 1.0, 1.0
    for rate in np.linspace(0.5, 0.995, 200):
        chance = stats.binom.pmf(wins, trials, rate)
        least = min(least, float(chance[(low <= rate) & (rate <= high)].sum()))
        least_wilson = min(least_wilson, float(chance[(wilson[:, 0] <= rate) & (rate <= wilson[:, 1])].sum()))
    assert least >= 0.95 - 1e-9
    assert least_wilson < 0.94


def clustered_coverage(seeds: int, rate: float, agreement: float, repeats: int) -> tuple[float, float]:
    """Coverage of the clustered interval, and of the plain one, over all outcomes of more than one in 10⁸."""
    if agreement:
        spread = 1 / agreement - 1
        wins = stats.betabinom.pmf(range(repeats + 1), repeats, rate * spread, (1 - rate) * spread)
    else:
        wins = stats.binom.pmf(range(repeats + 1), repeats, rate)
    covered, plain, seen = 0.0, 0.0, 0.0
    counts = np.array([each for each in itertools.product(range(seeds + 1), repeat=repeats) if sum(each) <= seeds])
    counts = np.column_stack([counts, seeds - counts.sum(axis=1)])
    chances = stats.multinomial.pmf(counts, seeds, wins / wins.sum())
    for chance, count in zip(chances[chances > 1e-8], counts[chances > 1e-8], strict=True):
        won = np.repeat(np.arange(repeats + 1), count)
        _, low, high = clustered_clopper_pearson(won, np.full(seeds, repeats))
        covered += chance * (low <= rate <= high)
        _, low, high = clopper_pearson(int(won.sum()), seeds * repeats)
        plain += chance * (low <= rate <= high)
        seen += chance
    assert seen > 0.999
    return covered / seen, plain / seen


@pytest.mark.parametrize(("seeds", "rate"), [(50, 0.9), (50, 0.95), (100, 0.97), (100, 0.995), (300, 0.995)])
@pytest.mark.parametrize("agreement", [0.0, 0.6, 0.99])
def test_clustered_intervals_cover(seeds: int, rate: float, agreement: float) -> None:
    """Repeats that are independent, resemble each other, or are almost the same episode."""
    covered, plain = clustered_coverage(seeds, rate, agreement, repeats=2)
    assert covered >= 0.94
    if agreement > 0.9 and rate < 0.99:
        assert plain < 0.9


@pytest.mark.parametrize(("rate", "agreement"), [(0.97, 0.3), (0.97, 0.6), (0.99, 0.6)])
def test_clustered_intervals_of_three_repeats_cover(rate: float, agreement: float) -> None:
    assert clustered_coverage(50, rate, agreement, repeats=3)[0] >= 0.94


def test_single_trials_are_no_clusters() -> None:
    outcomes = [1, 0, 1, 1, 0, 1, 1, 1]
    assert clustered_clopper_pearson(outcomes, [1] * 8) == clopper_pearson(6, 8)


def test_clusters_without_design_effect_count_every_trial() -> None:
    """Repeats that differ as much as independent trials do."""
    found = clustered_clopper_pearson(np.array([1] * 100), np.array([2] * 100), 0.9)
    assert found == pytest.approx(clopper_pearson(100, 200, 0.9), abs=1e-12)


def test_repeats_that_always_agree_add_nothing() -> None:
    outcomes = np.array([1, 0, 1, 1, 0, 1, 1, 1] * 5)
    repeated = clustered_clopper_pearson(3 * outcomes, np.full(40, 3))
    assert repeated == pytest.approx(clopper_pearson(int(outcomes.sum()), 40), abs=0.01)


def test_unanimous_success_counts_seeds_not_repeats() -> None:
    assert clustered_clopper_pearson([3] * 20, [3] * 20) == pytest.approx(clopper_pearson(20, 20))
    assert clustered_clopper_pearson([0] * 20, [3] * 20) == pytest.approx(clopper_pearson(0, 20))


def test_clusters_of_unequal_size_cover() -> None:
    """Seeds of very different difficulty, 1 to 5 repeats each: the plain interval would cover far less than 95 %."""
    rng = np.random.default_rng(0)
    covered, plain = 0, 0
    sizes = np.tile([1, 2, 5], 20)
    for _ in range(600):
        wins = rng.binomial(sizes, rng.beta(0.5, 0.5, size=60))
        _, low, high = clustered_clopper_pearson(wins, sizes)
        covered += low <= 0.5 <= high
        _, low, high = clopper_pearson(int(wins.sum()), int(sizes.sum()))
        plain += low <= 0.5 <= high
    assert covered / 600 > 0.94
    assert plain / 600 < 0.87


# Latencies and means


def test_bootstrap_resamples_whole_pairs_as_scipy_does() -> None:
    x, y = np.random.default_rng(3).lognormal(size=(2, 80))

    def statistic(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return (a * b).mean(axis=axis)

    found = bootstrap_interval((x, y), statistic, confidence=0.9, resamples=4000)
    expected = stats.bootstrap((x * y,), np.mean, confidence_level=0.9, n_resamples=4000, method="percentile", rng=1)
    assert found.value == pytest.approx((x * y).mean())
    assert found[1:] == pytest.approx(tuple(expected.confidence_interval), rel=0.05)


def test_quantile_interval_agrees_with_order_statistics() -> None:
    """The exact interval of a quantile lies between order statistics whose ranks are binomial."""
    samples = np.sort(np.random.default_rng(0).lognormal(size=300))
    found = quantile_interval(samples, 0.95, resamples=5000)
    low, high = stats.binom.ppf([0.025, 0.975], 300, 0.95).astype(int)
    assert found.value == np.quantile(samples, 0.95)
    assert samples[low - 4] <= found.low <= samples[low + 2]
    assert samples[high - 3] <= found.high <= samples[high + 3]


def test_median_interval_covers() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        _, low, high = quantile_interval(rng.normal(size=101), 0.5, resamples=400)
        hits += low <= 0 <= high
    assert 0.9 < hits / 200 <= 0.99


def test_the_same_data_give_the_same_interval() -> None:
    samples = np.arange(50.0)
    assert quantile_interval(samples, 0.5) == quantile_interval(samples, 0.5)


def test_paired_ratio_is_exact_where_drift_hits_both_sides() -> None:
    rng = np.random.default_rng(2)
    drift = rng.lognormal(sigma=0.5, size=400)
    value, low, high = ratio_of_medians(3 * drift, drift)
    assert (value, low, high) == pytest.approx((3, 3, 3))
    shuffled = ratio_of_medians(3 * drift, rng.permutation(drift))
    assert shuffled.high - shuffled.low > 0.2


def test_ratio_of_medians_covers() -> None:
    rng, hits = np.random.default_rng(5), 0
    for _ in range(200):
        _, low, high = ratio_of_medians(
            2 * rng.lognormal(sigma=0.3, size=80), rng.lognormal(sigma=0.3, size=80), 0.95, 300
        )
        hits += low <= 2 <= high
    assert 0.9 < hits / 200 <= 0.995


def test_mean_interval_is_scipys_t_interval() -> None:
    values = np.random.default_rng(0).uniform(size=30)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    estimate = mean_interval(values, 0.9)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate[1:] == pytest.approx(tuple(expected))


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_ratio_of_sums_takes_its_error_between_entries() -> None:
    chunks = np.array([2.0, 3.0, 5.0, 10.0])
    assert ratio_of_sums(7 * chunks, chunks) == pytest.approx((7, 0))
    mean, error = ratio_of_sums([10.0, 14.0], [1.0, 1.0])
    assert (mean, error) == pytest.approx((12, stats.sem([10.0, 14.0])))
    assert np.isnan(ratio_of_sums([10.0], [2.0])[1])


def test_the_error_of_a_ratio_is_its_scatter_over_repetitions() -> None:
    rng = np.random.default_rng(4)
    ratios, errors = [], []
    for _ in range(2000):
        chunks = rng.integers(5, 30, size=60)
        ratio, error = ratio_of_sums(rng.normal(10, 2, size=60) * chunks, chunks)
        ratios.append(ratio)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.06)


# Paired comparisons


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (3, 3), (7, 2), (8, 2), (200, 260)])
def test_sign_flips_of_single_trials_are_the_binomial_test_of_scipy(only_first: int, only_second: int) -> None:
    differences = [1] * only_first + [-1] * only_second + [0] * 50
    expected = stats.binomtest(only_first, only_first + only_second).pvalue
    assert sign_flip_test(differences) == pytest.approx(expected)


def test_sign_flips_are_scipys_permutation_test() -> None:
    differences = np.array([3, -1, 2, 0, 2, -2, 1])
    expected = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=10_000).pvalue
    assert sign_flip_test(differences) == pytest.approx(expected)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=7)]
    assert sign_flip_test(differences) == pytest.approx(np.mean([total >= 5 for total in sums]))


def test_no_discordant_pair_is_no_evidence() -> None:
    assert sign_flip_test([0, 0, 0]) == 1


def test_difference_interval_covers_and_keeps_its_width() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(500):
        differences = rng.choice([-1, 0, 1], size=60, p=[0.05, 0.8, 0.15])
        _, low, high = paired_difference(differences)
        covered += low <= 0.1 <= high
    assert 0.92 < covered / 500 < 0.99
    value, low, high = paired_difference(np.zeros(100))
    assert value == 0
    assert -0.05 < low < -0.01 < 0.01 < high < 0.05


def test_repeats_of_hard_and_easy_seeds_are_judged_by_seed() -> None:
    """Two equal methods, three repeats a seed, noise that repeats share: as if each seed were tried once and a half."""
    rng = np.random.default_rng(3)
    covered, found, naive = 0, 0, 0
    for _ in range(400):
        chance = rng.choice([0.05, 0.95], size=(2, 50, 1), p=[0.3, 0.7])
        first, second = rng.random((2, 50, 3)) < chance
        differences = first.astype(int) - second.astype(int)
        _, low, high = paired_difference(differences.mean(axis=1))
        covered += low <= 0 <= high
        found += sign_flip_test(differences.sum(axis=1)) < 0.05
        naive += mcnemar(first.ravel(), second.ravel()) < 0.05
    assert covered / 400 > 0.93
    assert found / 400 < 0.07
    assert naive / 400 > 0.12


# Means over tasks


def test_one_estimate_is_its_own_mean() -> None:
    assert mean_of_estimates([Estimate(0.5, 0.3, 0.6)]) == pytest.approx((0.5, 0.3, 0.6))


def test_distances_add_in_quadrature_on_either_side() -> None:
    mean = mean_of_estimates([Estimate(0.5, 0.2, 0.6), Estimate(0.9, 0.5, 0.9)])
    assert mean == pytest.approx((0.7, 0.7 - np.hypot(0.3, 0.4) / 2, 0.7 + 0.1 / 2))


def test_the_interval_of_a_mean_rate_covers() -> None:
    rng, chances, covered = np.random.default_rng(0), (0.5, 0.9, 0.98), 0
    for _ in range(500):
        _, low, high = mean_of_estimates([clopper_pearson(rng.binomial(60, chance), 60) for chance in chances])
        covered += low <= np.mean(chances) <= high
    assert covered / 500 > 0.94


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clopper_pearson(0, 0), "0 <= successes <= trials"),
        (lambda: clopper_pearson(3, 2), "0 <= successes <= trials"),
        (lambda: clopper_pearson(-1, 2), "0 <= successes <= trials"),
        (lambda: clopper_pearson(1, 2, confidence=95), "between 0 and 1"),
        (lambda: clustered_clopper_pearson([], []), "no measurements"),
        (lambda: clustered_clopper_pearson([1, 1], [1]), "paired"),
        (lambda: clustered_clopper_pearson([2], [1]), "successes <= trials"),
        (lambda: clustered_clopper_pearson([np.nan], [1]), "NaN"),
        (lambda: quantile_interval([], 0.5), "no measurements"),
        (lambda: quantile_interval([1.0, np.nan], 0.5), "1 of 2 values are NaN"),
        (lambda: quantile_interval([1.0], 0.5), "at least two"),
        (lambda: quantile_interval([1.0, 2.0], 99), r"p99 is 0\.99"),
        (lambda: quantile_interval([[1.0]], 0.5), "shape"),
        (lambda: ratio_of_medians([1.0, 2.0], [1.0]), "paired"),
        (lambda: ratio_of_medians([1.0, 2.0], [1.0, 0.0]), "positive"),
        (lambda: ratio_of_sums([1.0], [0.0]), "zero"),
        (lambda: mean_interval([0.5]), "one value has no interval"),
        (lambda: mean_interval([0.5, float("nan")]), "NaN"),
        (lambda: sign_flip_test([0.5]), "whole numbers"),
        (lambda: paired_difference([2.0]), "between -1 and 1"),
        (lambda: mean_of_estimates([]), "at least one estimate"),
        (lambda: mean_of_estimates([Estimate(0.5, float("nan"), 0.6)]), "at least one estimate"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        call()
