"""The table of one task, each number with its interval beneath it and with what to sort it by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specpolicy.evaluation.report.formatting import MISSING, interval, milliseconds, p_value, percent, points, times
from specpolicy.evaluation.report.results import TaskResults
from specpolicy.evaluation.statistics import Estimate
from specpolicy.evaluation.summary import LatencySummary, SummaryRow


@dataclass(frozen=True)
class Cell:
    """A number, what stands beneath it, and its sort key (None sorts last)."""

    text: str
    note: str = ""
    key: float | None = None


@dataclass(frozen=True)
class Line:
    """One sampler."""

    row: SummaryRow
    law: str
    cells: Sequence[Cell]


Column = tuple[str, str, Callable[[SummaryRow], Cell]]


def columns_of(results: TaskResults) -> list[Column]:
    """Title, explanation and content of each column."""
    reference = results.reference or "reference"
    repeated = any(record.repeat for record in results.records)
    return [
        ("Success", "Wilson, 95 %", _success),
        ("Succeeded", "of episodes", _episodes),
        (f"Δ to {reference}", "points, paired", _difference),
        ("p", "sign flips" if repeated else "McNemar", _p_value),
        ("Passes", "of a chunk", _passes),
        ("p50", "ms, 95 %", _quantile(lambda latency: latency.p50)),
        ("p95", "ms, 95 %", _quantile(lambda latency: latency.p95)),
        ("Speed-up", f"to {reference}, 95 %", _speed_up),
    ]


def lines_of(results: TaskResults) -> list[Line]:
    """One for each sampler, the reference first."""
    shown = columns_of(results)
    return [Line(row, _law(results, row), [cell(row) for _, _, cell in shown]) for row in results.rows]


def _law(results: TaskResults, row: SummaryRow) -> str:
    if row.exact is None:
        return "not known"
    if not row.exact:
        return "approximate"
    law = results.laws.get(row.sampler)
    return f"exact, {law}" if law else "exact"


def _success(row: SummaryRow) -> Cell:
    if row.success is None:
        return Cell(MISSING)
    return Cell(
        percent(row.success.value), interval(row.success, lambda value: f"{100 * value:.1f}"), row.success.value
    )


def _episodes(row: SummaryRow) -> Cell:
    crashed = f"{row.crashed} crashed" if row.crashed else ""
    return Cell(f"{row.successes}/{row.episodes}", crashed, row.episodes) if row.episodes else Cell(MISSING)


def _difference(row: SummaryRow) -> Cell:
    if row.difference is None:
        return Cell(MISSING)
    note = interval(row.difference, points) + (f" {row.pairs} pairs" if row.pairs != row.episodes else "")
    return Cell(points(row.difference.value), note, row.difference.value)


def _p_value(row: SummaryRow) -> Cell:
    return Cell(MISSING) if row.p_value is None else Cell(p_value(row.p_value), key=row.p_value)


def _passes(row: SummaryRow) -> Cell:
    if row.passes is None:
        return Cell(MISSING)
    return Cell(f"{row.passes:.1f}", f"± {row.passes_error:.1f}" if row.passes_error else "", row.passes)


def _quantile(of: Callable[[LatencySummary], Estimate | None]) -> Callable[[SummaryRow], Cell]:
    def cell(row: SummaryRow) -> Cell:
        found = of(row.latency) if row.latency else None
        if found is None:
            return Cell(MISSING)
        return Cell(milliseconds(found.value), interval(found, milliseconds), found.value)

    return cell


def _speed_up(row: SummaryRow) -> Cell:
    found = row.latency.speed_up if row.latency else None
    if found is None:
        return Cell(MISSING)
    return Cell(times(found.value), interval(found, lambda value: times(value).rstrip("×")), found.value)
