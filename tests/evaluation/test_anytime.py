"""Tests that hold however often they are looked at, beside the fixed-sample ones, which do not."""

from __future__ import annotations

import numpy as np
import pytest

from specpolicy.evaluation.anytime import anytime_p_value, confidence_sequence, log_capital
from specpolicy.evaluation.statistics import StatisticsError, paired_difference

AT_MARGIN = (0.12, 0.81, 0.07)  # of losses, ties and wins: a mean of −5 points


def test_errors_stay_within_the_level_under_optional_stopping() -> None:
    """A sampler that loses the margin exactly, looked at after every seed; the fixed-sample claim, every ten seeds."""
    rng = np.random.default_rng(0)
    claimed, peeked = 0, 0
    for _ in range(1000):
        differences = rng.choice([-1, 0, 1], 300, p=AT_MARGIN)
        larger, smaller = log_capital(differences, -0.05)
        claimed += max(larger.max(), smaller.max()) >= np.log(2 / 0.05)
        looks = (paired_difference(differences[:seen]) for seen in range(30, 301, 10))
        peeked += any(not low <= -0.05 <= high for _, low, high in looks)
    assert claimed / 1000 <= 0.05
    assert peeked / 1000 > 0.12


def test_the_sequence_covers_at_all_times_at_once() -> None:
    rng = np.random.default_rng(1)
    lost = 0
    for _ in range(60):
        differences = rng.choice([-1, 0, 1], 200, p=[0.05, 0.8, 0.15])
        bounds = [confidence_sequence(differences[:seen]) for seen in range(10, 201, 38)]
        lost += any(not low <= 0.1 <= high for _, low, high in bounds)
    assert lost / 60 <= 0.05


def test_enough_seeds_decide() -> None:
    rng = np.random.default_rng(2)
    equal = rng.choice([-1, 0, 1], 3000, p=[0.05, 0.9, 0.05])
    assert anytime_p_value(equal[:100], -0.05) > 0.05 > anytime_p_value(equal, -0.05)
    few, many = confidence_sequence(equal[:300]), confidence_sequence(equal)
    assert few.low < many.low < 0 < many.high < few.high and many.low > -0.05
    assert anytime_p_value([-1] * 30) < 0.01


def test_p_value_and_sequence_agree() -> None:
    differences = np.random.default_rng(3).choice([-1, 0, 1], 200, p=[0.3, 0.6, 0.1])
    _, low, high = confidence_sequence(differences)
    for bound in (low, high):
        assert anytime_p_value(differences, bound) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("wrong", [[], [1.5], [float("nan")]])
def test_bad_input_is_refused(wrong: list[float]) -> None:
    with pytest.raises(StatisticsError):
        anytime_p_value(wrong)
