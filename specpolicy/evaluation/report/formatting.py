"""Numbers as a reader sees them, the same everywhere on the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specpolicy.evaluation.statistics import Estimate

MISSING = "–"
MINUS = "\u2212"


def milliseconds(value: float) -> str:
    """Three digits: ``3.27``, ``54.1``, ``133``."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times(value: float) -> str:
    """A ratio with its sign: ``3.76×``."""
    return f"{value:.1f}×" if value >= 9.995 else f"{value:.2f}×"


def points(value: float) -> str:
    """A difference of rates in percentage points: ``−2.0``."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def percent(value: float) -> str:
    """A rate: ``85 %``, ``85.5 %``."""
    return f"{100 * value:.1f}".removesuffix(".0") + "\u00a0%"


def p_value(value: float) -> str:
    """Two digits, one where it is small."""
    return f"{value:.2f}" if value >= 0.095 else f"{value:.1g}"


def interval(estimate: Estimate, shown: Callable[[float], str]) -> str:
    """The bounds of an estimate, each as ``shown`` writes it: ``[74.5, 89.1]``."""
    return f"[{shown(estimate.low)}, {shown(estimate.high)}]"


def ranges(numbers: Sequence[int]) -> str:
    """Whole numbers with runs drawn together: ``3, 7–9``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def counted(number: int, noun: str) -> str:
    """``1 episode``, ``2 episodes``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
