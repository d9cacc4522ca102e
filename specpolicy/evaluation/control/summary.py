"""The rows of an experiment as a table: for the terminal, as markdown, as JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from specpolicy.control.controller import ControllerConfig
from specpolicy.control.metrics import ControlMetrics, Quantiles, measure
from specpolicy.control.trace import EpisodeTrace, TraceError, read_trace
from specpolicy.evaluation.summary import SummaryRow, summarize
from specpolicy.rollout.episodes import EpisodeResult
from specpolicy.utils.progress import Bar, progress_bar


@dataclass(frozen=True)
class CellRow:
    """What is known of one controller.

    Attributes:
        cell: which.
        exact: whether its sampler has the law that the sampler names.
        summary: success with Wilson's interval, passes of the chunks played, and the paired comparison with the cell of
            the same sampler for which the world waits, where there is one.
        metrics: of its loop.
        latency_ms: median latency of a whole inference: as charged, else as it was measured; None if nothing is known.
    """

    cell: ControllerConfig
    exact: bool
    summary: SummaryRow
    metrics: ControlMetrics
    latency_ms: float | None


def make_rows(
    cells: Sequence[ControllerConfig],
    records: Sequence[EpisodeResult],
    exact: Mapping[str, bool],
    paths: Mapping[str, Sequence[Path]],
) -> list[CellRow]:
    """A row for each cell that has episodes, in the order of ``cells``.

    Args:
        cells: of the experiment.
        records: its episodes, each once.
        exact: by sampler.
        paths: files of ticks by cell.
    """
    with progress_bar("reading ticks", sum(map(len, paths.values()))) as bar:
        return _make_rows(cells, records, exact, paths, bar)


def _make_rows(
    cells: Sequence[ControllerConfig],
    records: Sequence[EpisodeResult],
    exact: Mapping[str, bool],
    paths: Mapping[str, Sequence[Path]],
    bar: Bar,
) -> list[CellRow]:
    rows = []
    for sampler in dict.fromkeys(cell.sampler for cell in cells):
        family = [cell for cell in cells if cell.sampler == sampler]
        waits = [cell.name for cell in family if cell.executor.rules.world_waits]
        names = {cell.name for cell in family}
        mine = [record for record in records if record.sampler in names]
        laws = {cell.name: exact[sampler] for cell in family}
        summaries = {row.sampler: row for row in summarize(mine, exact=laws, reference=waits[0] if waits else "")}
        for cell in family:
            if cell.name in summaries:
                metrics = measure(_accounts(paths.get(cell.name, ()), bar))
                latency = _latency_ms(cell, metrics)
                rows.append(CellRow(cell, exact[sampler], summaries[cell.name], metrics, latency))
    return rows


def _latency_ms(cell: ControllerConfig, metrics: ControlMetrics) -> float | None:
    typical = cell.charge.latency.typical_s
    if typical is not None:
        return 1e3 * typical
    return None if metrics.inference_ms is None else metrics.inference_ms.p50


def _accounts(paths: Sequence[Path], bar: Bar) -> Iterator[EpisodeTrace]:
    for path in paths:
        bar.advance()
        try:
            yield read_trace(path)
        except TraceError as error:
            warnings.warn(f"{error}; the loop's numbers do without it", stacklevel=2)


MISSING = "–"
_WORDS = ("executor", "sampler", "law", "charged")
Column = tuple[str, Callable[[CellRow], str]]


def _success(row: CellRow) -> str:
    if row.summary.success is None:
        return MISSING
    crashed = f", {row.summary.crashed} crashed" if row.summary.crashed else ""
    _, low, high = (100 * value for value in row.summary.success)
    return f"{row.summary.successes}/{row.summary.episodes} [{low:.0f}, {high:.0f}]{crashed}"


def _ms(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0f}"


def _quantile(of: Callable[[CellRow], Quantiles | None], name: str) -> Callable[[CellRow], str]:
    def cell(row: CellRow) -> str:
        quantiles = of(row)
        return MISSING if quantiles is None else _ms(getattr(quantiles, name))

    return cell


def _percent(of: Callable[[CellRow], float | None]) -> Callable[[CellRow], str]:
    def cell(row: CellRow) -> str:
        share = of(row)
        return MISSING if share is None else f"{100 * share:.1f}"

    return cell


def _jumps(row: CellRow) -> str:
    border, inner = row.metrics.border_jump, row.metrics.inner_jump
    return MISSING if border is None or inner is None else f"{border:.2f} / {inner:.2f}"


def _passes(row: CellRow) -> str:
    whole, finish = row.metrics.passes, row.metrics.finish_passes
    if finish is None:
        return MISSING if whole is None else f"{whole:.1f}"
    return f"{finish:.1f} of {whole:.1f}" if whole is not None else f"{finish:.1f}"


def _p_value(row: CellRow) -> str:
    p = row.summary.p_value
    return MISSING if p is None else (f"{p:.2f}" if p >= 0.095 else f"{p:.1g}")


_IDENTITY: list[Column] = [
    ("executor", lambda row: row.cell.executor_name),
    ("sampler", lambda row: row.cell.sampler),
    ("law", lambda row: "exact" if row.exact else "approx."),
    ("charged", lambda row: row.cell.charge.label),
]
_COMPACT: list[Column] = [
    ("success", _success),
    ("react", _quantile(lambda row: row.metrics.reaction_ms, "p50")),
    ("held", _percent(lambda row: row.metrics.held)),
    ("stale", _percent(lambda row: row.metrics.stale)),
    ("jumps", _jumps),
    ("passes", _passes),
]
_FULL: list[Column] = [
    *_IDENTITY,
    ("success [95 %]", _success),
    ("p", _p_value),
    ("latency ms", lambda row: _ms(row.latency_ms)),
    *(
        (f"react {name} ms", _quantile(lambda row: row.metrics.reaction_ms, name))
        for name in ("p50", "p95", "p99", "max")
    ),
    ("age p95 ms", _quantile(lambda row: row.metrics.age_ms, "p95")),
    ("jitter p99 ms", _quantile(lambda row: row.metrics.jitter_ms, "p99")),
    ("held %", _percent(lambda row: row.metrics.held)),
    ("stale %", _percent(lambda row: row.metrics.stale)),
    ("missed %", _percent(lambda row: row.metrics.missed)),
    ("jump: border / inner", _jumps),
    ("passes", _passes),
]


def rich_table(rows: Sequence[CellRow], title: str) -> Table:
    """The table for a terminal; what is the same in all rows is in the title."""
    told = {name: {cell(row) for row in rows} for name, cell in _IDENTITY}
    common = [", ".join(told[name]) for name, _ in _IDENTITY if len(told[name]) == 1]
    columns = [(name, cell) for name, cell in _IDENTITY if len(told[name]) > 1] + _COMPACT
    table = Table(
        title=", ".join([title, *common]),
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        show_edge=False,
        pad_edge=False,
        caption="react: median ms from an observation to its first action; held: % of ticks without an action of the "
        "policy; stale: % of its actions older than in lockstep without latency; jumps: at borders of chunks / inside",
        caption_justify="left",
    )
    for name, _ in columns:
        table.add_column(
            name, justify="left" if name in _WORDS else "right", no_wrap=name not in _WORDS, overflow="fold"
        )
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns))
    return table


def markdown_table(rows: Sequence[CellRow]) -> str:
    """All columns as a markdown table with a caption below."""
    lines = [[name for name, _ in _FULL], ["---" if name in _WORDS else "---:" for name, _ in _FULL]]
    lines += [[cell(row).replace("|", "\\|") for _, cell in _FULL] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption(rows)}\n"


def json_summary(task: str, rows: Sequence[CellRow]) -> str:
    """Every number of the rows, with what each cell is; ``null`` where nothing is known."""
    cells = [
        {
            "executor": row.cell.executor_name,
            "sampler": row.cell.sampler,
            "exact": row.exact,
            "charged": {"label": row.cell.charge.label, **row.cell.charge.description},
            "latency_ms": row.latency_ms,
            "success": _estimate(row.summary.success),
            "successes": row.summary.successes,
            "episodes": row.summary.episodes,
            "crashed": row.summary.crashed,
            "against_lockstep": {
                "pairs": row.summary.pairs,
                "difference": _estimate(row.summary.difference),
                "p": row.summary.p_value,
            },
            "loop": asdict(row.metrics),
        }
        for row in rows
    ]
    return json.dumps({"task": task, "cells": cells}, indent=2, allow_nan=False) + "\n"


def caption(rows: Sequence[CellRow]) -> str:
    """What the columns mean."""
    parts = [
        "Success with Wilson's 95 % interval; crashed episodes count as failures.",
        "Charged: the latency of a whole inference on the loop's clock; finishing a draft is charged its share in "
        "passes.",
        "React: from an observation to the first action computed from it.",
        "Held: ticks without an action of the policy; stale: actions older than any in lockstep without latency; "
        "missed: ticks that were planned and had no action, or came late.",
        "Jump: mean L2 distance of consecutive actions where the chunk changes, and where it does not.",
    ]
    if any(row.summary.p_value is not None for row in rows):
        parts.append("p: exact, paired by seed, against the same sampler in lockstep, not corrected for many rows.")
    if any(row.exact for row in rows):
        parts.append("Exact: the law of the DDPM chain with the sampler's own number of steps.")
    return " ".join(parts)


def _estimate(estimate: Any) -> dict[str, float] | None:
    return None if estimate is None else {"value": estimate.value, "low": estimate.low, "high": estimate.high}
