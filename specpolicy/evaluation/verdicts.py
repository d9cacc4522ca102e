"""Verdicts on success rates: non-inferiority at a margin, corrected for a table's rows, and who may be the best.

The margin is the loss of success that still counts as equal. It is fixed before the first episode and kept in the
manifest; a folder refuses another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from specpolicy.evaluation.statistics import Estimate, StatisticsError, sign_flip_test

MARGIN = 0.05
LEVEL = 0.05
NON_INFERIOR, INFERIOR, UNDECIDED = "non-inferior", "inferior", "undecided"


def checked_margin(margin: float) -> float:
    """Check a margin and return it.

    Args:
        margin: loss of success that still counts as non-inferior, in (0, 1).

    Raises:
        StatisticsError: it is outside (0, 1).
    """
    if not 0 < margin < 1:
        raise StatisticsError(f"margin={margin}: expected a number between 0 and 1; 5 points are 0.05")
    return float(margin)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm 1979), so that with 95 % no true hypothesis is rejected at 5 %.

    Args:
        p_values: of hypotheses of any dependence.

    Returns:
        The corrected ones, in the same order, at most 1.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[place])))
        corrected[place] = largest
    return corrected


def margin_p_value(difference: Estimate, margin: float = MARGIN) -> float:
    """Compute the two-sided p value of a loss of exactly the margin, from the interval of the difference.

    It is below 5 % just where the 95 % interval lies on one side of the margin.

    Args:
        difference: success rate minus the reference's, with a normal 95 % interval.
        margin: in (0, 1).

    Returns:
        The p value.
    """
    centre, half = (difference.low + difference.high) / 2, (difference.high - difference.low) / 2
    distance = abs(centre + checked_margin(margin))
    if half == 0:
        return 0.0 if distance else 1.0
    normal = NormalDist()
    return 2 * normal.cdf(-distance / half * normal.inv_cdf(0.975))


def verdicts(differences: Sequence[Estimate], p_values: Sequence[float], margin: float = MARGIN) -> list[str]:
    """Judge the rows of a table together.

    Of the two claims, a loss below and a loss above the margin, a row can be wrong in one only, so that Holm's
    correction over the rows bounds the probability of any wrong verdict by 5 %.

    Args:
        differences: success rate minus the reference's, one for each row that is compared.
        p_values: of a loss of exactly the margin: :func:`margin_p_value`, or of a test valid at any time.
        margin: in (0, 1).

    Returns:
        ``"non-inferior"``, ``"inferior"`` or ``"undecided"`` for each row.
    """
    found = []
    for difference, p_value in zip(differences, holm(p_values), strict=True):
        above = (difference.low + difference.high) / 2 > -checked_margin(margin)
        found.append(UNDECIDED if p_value > LEVEL else NON_INFERIOR if above else INFERIOR)
    return found


def among_best(
    names: Sequence[str],
    differences: Callable[[str, str], Sequence[float]],
    test: Callable[[Sequence[float]], float] = sign_flip_test,
) -> dict[str, bool]:
    """Find the set that cannot be told from the best: with 95 % the truly best is in it.

    A sampler leaves the set when another one beats it in a one-sided test at 5 % over the number of others. For the
    truly best that happens in at most 5 %, however the set was looked at.

    Args:
        names: those compared.
        differences: for two names, by seed, successes of the first minus those of the second.
        test: gives the two-sided p value of differences.

    Returns:
        Whether each is in the set.
    """
    best = dict.fromkeys(names, True)
    for name in names:
        for other in names:
            lost = differences(other, name) if other != name else []
            if sum(lost) > 0 and test(lost) / 2 * (len(names) - 1) <= LEVEL:
                best[name] = False
    return best


# What a table says of its verdicts; rows are those of a summary of one task or of several.


def verdict_title(rows: Sequence[Any]) -> str:
    """Name the column of verdicts with its margin: ``at −5 points``.

    Args:
        rows: with a ``margin``.
    """
    margin = _margin_of(rows)
    return "verdict" if margin is None else f"at \u2212{100 * margin:g} points"


def seeds_text(rows: Sequence[Any]) -> str:
    """Say whether episodes began from development seeds or from sealed ones.

    Args:
        rows: with ``seeds``, and how many of them are ``sealed``.
    """
    sealed, seeds = sum(row.sealed for row in rows), sum(row.seeds for row in rows)
    if sealed == 0:
        return "Development seeds."
    return "Sealed seeds." if sealed == seeds else "Development and sealed seeds together, which confirms nothing."


def comparison_text(rows: Sequence[Any], against: str, paired_by: str) -> str:
    """Say what Δ, p, verdicts and the best are.

    Args:
        rows: with ``margin`` and ``anytime``.
        against: what they are compared with.
        paired_by: what pairs.
    """
    margin = _margin_of(rows)
    tests = "valid however often the run was extended" if any(row.anytime for row in rows) else "exact"
    words = f"Δ success and p ({tests}, paired by {paired_by}, Holm's correction over the rows) against {against}."
    if margin is None:
        return words
    words += f" Verdicts: at a loss of {100 * margin:g} points, corrected likewise."
    return f"{words} Best: cannot be told from the best."


def _margin_of(rows: Sequence[Any]) -> float | None:
    return next((row.margin for row in rows if row.margin is not None), None)


_EXACT = {True: "exact", False: "approx.", None: "–"}


def distribution_text(exact: bool | None, precision: str | None = None) -> str:
    """Say whose distribution a sampler has: ``exact``, ``approx.``, ``exact, bf16 network``.

    Args:
        exact: whether it is the target's; None where unknown.
        precision: of the network where it is a reduced one, which is then the target.
    """
    return _EXACT[exact] + (f", {precision} network" if precision else "")


def precision_note(precisions: Iterable[str | None]) -> str:
    """Say in a sentence what a reduced network means for a table; nothing where there is none.

    Args:
        precisions: of the rows.
    """
    names = " and ".join(sorted({each for each in precisions if each}))
    note = "it was computed in reduced precision, and exact means the distribution of that reduced network"
    return f"{names} network: {note}, not of the network as it was trained." if names else ""
