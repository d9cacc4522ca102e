"""Paired comparisons."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from specpolicy.evaluation.statistics import StatisticsError, mcnemar, paired_difference, sign_flip_test


def test_mcnemar_counts_discordant_pairs_only() -> None:
    first, second = [True] * 8 + [False] * 2 + [True] * 50, [False] * 8 + [True] * 2 + [True] * 50
    # 2 (C(10,0) + C(10,1) + C(10,2)) / 2^10
    assert mcnemar(first, second) == pytest.approx(2 * 56 / 1024)
    assert mcnemar(second, first) == pytest.approx(2 * 56 / 1024)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (3, 3), (7, 2), (200, 260)])
def test_mcnemar_is_the_binomial_test_of_scipy(only_first: int, only_second: int) -> None:
    first = [True] * only_first + [False] * only_second
    expected = binomtest(only_first, only_first + only_second).pvalue
    assert mcnemar(first, [not success for success in first]) == pytest.approx(expected)


def test_no_discordant_pair_is_no_evidence() -> None:
    assert mcnemar([True, False], [True, False]) == 1
    assert sign_flip_test([0, 0, 0]) == 1


def test_sign_flips_of_single_trials_are_mcnemar() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, second = rng.random((2, 60)) < [[0.8], [0.6]]
        assert sign_flip_test(first.astype(int) - second.astype(int)) == pytest.approx(mcnemar(first, second))


def test_sign_flips_against_enumeration() -> None:
    differences = [3, -1, 2, 0, 2, -2, 1]
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=7)]
    assert sign_flip_test(differences) == pytest.approx(np.mean([total >= 5 for total in sums]))


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
        naive += mcnemar(first.ravel().tolist(), second.ravel().tolist()) < 0.05
    assert covered / 400 > 0.93
    assert found / 400 < 0.07
    assert naive / 400 > 0.12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar([True], [True, False]), "paired entry by entry"),
        (lambda: mcnemar([], []), "no measurements"),
        (lambda: sign_flip_test([0.5]), "whole numbers"),
        (lambda: paired_difference([2.0]), "between -1 and 1"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        call()  # type: ignore[operator]
