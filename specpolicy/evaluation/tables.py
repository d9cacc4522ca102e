"""The summary as a table: for the terminal, as markdown, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from specpolicy.evaluation.statistics import Estimate
from specpolicy.evaluation.summary import SummaryRow

MISSING = "–"
_WORDS = ("sampler", "law")  # columns that are no numbers


def _percent(row: SummaryRow) -> str:
    if row.success is None:
        return MISSING
    rate, low, high = (100 * value for value in row.success)
    return f"{rate:.1f} [{low:.1f}, {high:.1f}]"


def _score(row: SummaryRow) -> str:
    return MISSING if row.score is None else f"{row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]"


def _steps(row: SummaryRow) -> str:
    return MISSING if row.steps is None else f"{row.steps.value:.0f} [{row.steps.low:.0f}, {row.steps.high:.0f}]"


def _counts(row: SummaryRow) -> str:
    if row.episodes == 0:
        return MISSING
    return f"{row.successes}/{row.episodes}" + (f", {row.crashed} crashed" if row.crashed else "")


def _passes(row: SummaryRow) -> str:
    if row.passes is None:
        return MISSING
    return f"{row.passes:.1f}" if row.passes_error is None else f"{row.passes:.1f} ± {row.passes_error:.1f}"


def _milliseconds(quantile: Callable[[Any], Estimate | None]) -> Callable[[SummaryRow], str]:
    def cell(row: SummaryRow) -> str:
        estimate = None if row.latency is None else quantile(row.latency)
        if estimate is None:
            return MISSING
        return f"{estimate.value:.3g}" if estimate.value < 100 else f"{estimate.value:.0f}"

    return cell


def _speed_up(row: SummaryRow) -> str:
    estimate = None if row.latency is None else row.latency.speed_up
    return MISSING if estimate is None else f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _difference(row: SummaryRow) -> str:
    if row.difference is None:
        return MISSING
    value, low, high = (100 * number for number in row.difference)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _p_value(row: SummaryRow) -> str:
    if row.p_value is None:
        return MISSING
    return f"{row.p_value:.2f}" if row.p_value >= 0.095 else f"{row.p_value:.1g}"


_EXACT = {True: "exact", False: "approx.", None: MISSING}


def _columns(reference: str) -> list[tuple[str, Callable[[SummaryRow], str]]]:
    return [
        ("sampler", lambda row: row.sampler),
        ("law", lambda row: _EXACT[row.exact]),
        ("succeeded", _counts),
        ("success, % [95 %]", _percent),
        ("score [95 %]", _score),
        ("steps to success", _steps),
        ("passes / chunk", _passes),
        ("p50 ms", _milliseconds(lambda latency: latency.p50)),
        ("p95 ms", _milliseconds(lambda latency: latency.p95)),
        ("p99 ms", _milliseconds(lambda latency: latency.p99)),
        (f"× {reference} [95 %]", _speed_up),
        ("Δ points [95 %]", _difference),
        ("p", _p_value),
    ]


def _compact_columns(reference: str) -> list[tuple[str, Callable[[SummaryRow], str]]]:
    """Fits 80 columns of a terminal; the markdown has what is left out here."""
    return [
        ("sampler", lambda row: row.sampler),
        ("law", lambda row: _EXACT[row.exact]),
        ("success [95 %]", _compact_success),
        ("score", lambda row: MISSING if row.score is None else f"{row.score.value:.3f}"),
        ("passes", lambda row: MISSING if row.passes is None else f"{row.passes:.1f}"),
        ("p50", _milliseconds(lambda latency: latency.p50)),
        ("p95 ms", _milliseconds(lambda latency: latency.p95)),
        (f"× {reference}", _compact_speed_up),
        ("p", _p_value),
    ]


def _compact_success(row: SummaryRow) -> str:
    if row.success is None:
        return MISSING
    crashed = f", {row.crashed} crashed" if row.crashed else ""
    return f"{row.successes}/{row.episodes} [{100 * row.success.low:.0f}, {100 * row.success.high:.0f}]{crashed}"


def _compact_speed_up(row: SummaryRow) -> str:
    estimate = None if row.latency is None else row.latency.speed_up
    return MISSING if estimate is None else f"{estimate.value:.1f}"


def rich_table(rows: Sequence[SummaryRow], title: str | None = None, reference: str = "ddpm") -> Table:
    """The table for a terminal, 80 columns wide; columns that say nothing are left out."""
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        show_edge=False,
        pad_edge=False,
        caption=caption(rows, reference),
        caption_justify="left",
    )
    columns = _telling(rows, _compact_columns(reference))
    for name, _ in columns:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns))
    return table


def markdown_table(rows: Sequence[SummaryRow], reference: str = "ddpm") -> str:
    """The same as a markdown table with a caption below."""
    columns = _telling(rows, _columns(reference))
    lines = [[name for name, _ in columns]]
    lines.append(["---" if name in _WORDS else "---:" for name, _ in columns])
    lines += [[cell(row).replace("|", "\\|") for _, cell in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption(rows, reference)}\n"


def json_table(rows: Sequence[SummaryRow]) -> str:
    """Every number of the rows, intervals as ``[value, low, high]``, ``null`` where nothing is known."""
    return json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False) + "\n"


def caption(rows: Sequence[SummaryRow], reference: str = "ddpm") -> str:
    """What the columns mean, in one or two sentences."""
    parts = []
    if any(row.success for row in rows):
        parts.append("Success with Wilson intervals; crashed episodes count as failures.")
    if any(row.latency for row in rows):
        calls = sorted({row.latency.calls for row in rows if row.latency})
        parts.append(
            f"Latency of one chunk at batch size 1 over {' or '.join(map(str, calls))} calls, samplers in turn."
        )
    if any(row.exact for row in rows):
        parts.append("Exact: the law of the DDPM chain with the sampler's own number of steps.")
    if any(row.p_value is not None for row in rows):
        parts.append(
            f"Δ success and p (exact, paired by seed) against {reference}, not corrected for the number of rows."
        )
    if any(row.seeds < row.episodes for row in rows):
        parts.append("Repeats of a seed count as a cluster; Δ and p are of the repeats that both samplers have run.")
    if any(row.steps for row in rows):
        parts.append("Steps to success: mean over the episodes that succeeded, with Student's interval over seeds.")
    if any(row.score for row in rows):
        parts.append("Score: mean sum of rewards of an episode, with Student's interval over seeds.")
    return " ".join(parts)


def _telling(
    rows: Sequence[SummaryRow], columns: list[tuple[str, Callable[[SummaryRow], str]]]
) -> list[tuple[str, Callable[[SummaryRow], str]]]:
    return [(name, cell) for name, cell in columns if any(cell(row) != MISSING for row in rows)]
