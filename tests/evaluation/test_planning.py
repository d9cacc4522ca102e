"""Plans of paired comparisons: exact sums, checked against the tests that the tables use."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multinomial

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.evaluation.planning import mcnemar_power, non_inferiority_power, plan_comparison
from specpolicy.evaluation.statistics import StatisticsError, paired_difference, sign_flip_test


def enumerated(seeds: int, wins: float, losses: float, margin: float) -> tuple[float, float]:
    """Both probabilities from the table's own functions, outcome by outcome."""
    different, claimed = 0.0, 0.0
    for won, lost in itertools.product(range(seeds + 1), repeat=2):
        if won + lost > seeds:
            continue
        rest = seeds - won - lost
        chance = float(multinomial.pmf([won, lost, rest], seeds, [wins, losses, 1 - wins - losses]))
        differences = np.array([1] * won + [-1] * lost + [0] * rest)
        different += chance * (sign_flip_test(differences) <= 0.05)
        claimed += chance * (paired_difference(differences).low > -margin)
    return different, claimed


@pytest.mark.parametrize(("seeds", "wins", "losses"), [(12, 0.1, 0.5), (20, 0.2, 0.2), (25, 0.02, 0.3), (25, 0.4, 0.1)])
def test_probabilities_are_those_of_the_tables_tests(seeds: int, wins: float, losses: float) -> None:
    different, claimed = enumerated(seeds, wins, losses, margin=0.2)
    assert mcnemar_power(seeds, wins, losses) == pytest.approx(different, abs=1e-9)
    assert non_inferiority_power(seeds, wins, losses, margin=0.2) == pytest.approx(claimed, abs=1e-9)


@pytest.mark.parametrize("discordance", [0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("seeds", [50, 100, 300])
def test_errors_stay_within_their_levels(seeds: int, discordance: float) -> None:
    """McNemar's test is exact, so at most 5 %; the interval's claim is approximate: at most 4 %, 2.5 % nominally."""
    assert mcnemar_power(seeds, discordance / 2, discordance / 2) <= 0.05
    assert non_inferiority_power(seeds, discordance / 2, discordance / 2 + 0.05) <= 0.04


def test_detectable_loss_has_the_wanted_power() -> None:
    plan = plan_comparison(300, 0.92)
    assert plan.discordance == pytest.approx(2 * 0.92 * 0.08)
    assert plan.detectable is not None
    half = plan.discordance / 2
    assert mcnemar_power(300, half, half + plan.detectable) >= 0.8
    assert mcnemar_power(300, half, half + plan.detectable - 3e-4) < 0.8


def test_more_seeds_and_agreement_find_more() -> None:
    few, many, agreeing = plan_comparison(100, 0.9), plan_comparison(300, 0.9), plan_comparison(100, 0.9, 0.05)
    assert few.detectable > max(many.detectable, agreeing.detectable)
    assert few.non_inferior < min(many.non_inferior, agreeing.non_inferior)


def test_too_few_seeds_detect_nothing() -> None:
    assert plan_comparison(4, 0.9).detectable is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "2 to 2000"),
        ({"success": 92}, "between 0 and 1"),
        ({"margin": math.nan}, "between 0 and 1"),
        ({"discordance": 0.5}, "at most 0.16"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_impossible_plans_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        plan_comparison(**{"seeds": 100, "success": 0.92} | change)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "seeds=[100,300]", "success=0.92"]) == 0
    lines = capsys.readouterr().out
    wanted = plan_comparison(300, 0.92)
    assert f"{100 * wanted.detectable:.1f}" in lines and f"{100 * wanted.non_inferior:.0f} %" in lines
    assert main(["plan", "seeds=0"]) == EXIT_USER_ERROR
    assert "2 to 2000" in capsys.readouterr().err
