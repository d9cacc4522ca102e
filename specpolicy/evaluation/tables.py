"""One way to put rows into a table: columns once, rendered for a terminal, as markdown, or as HTML by the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

from rich import box
from rich.table import Table

from specpolicy.control.metrics import ControlMetrics, Quantiles
from specpolicy.evaluation.statistics import Estimate
from specpolicy.evaluation.summary import REFERENCE, LatencySummary, SummaryRow
from specpolicy.evaluation.verdicts import comparison_text, distribution_text, precision_note, seeds_text, verdict_title

MISSING = "–"
Row = TypeVar("Row")


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: the value.
        note: what belongs to it: an interval, a standard error.
        key: what to sort by; None sorts last.
    """

    text: str
    note: str = ""
    key: float | None = None


NOTHING = Cell(MISSING)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column.

    Attributes:
        title: its name.
        render: makes the cell of a row; a text stands for a cell without a note.
        unit: unit and interval, e.g. ``"% [95 %]"``.
        left: align left; numbers are aligned right.
        brief: leave notes out where there is little room, in markdown and on a terminal.
    """

    title: str
    render: Callable[[Row], Cell | str]
    unit: str = ""
    left: bool = False
    brief: bool = False

    @property
    def heading(self) -> str:
        """Title and unit in one line."""
        return f"{self.title} {self.unit}" if self.unit[:1] in ("[", "") else f"{self.title}, {self.unit}"

    def cell(self, row: Row) -> Cell:
        """Render a row's cell."""
        found = self.render(row)
        return found if isinstance(found, Cell) else Cell(found)

    def text(self, row: Row) -> str:
        """Render a row's cell in one line."""
        cell = self.cell(row)
        return " ".join(filter(None, [cell.text, "" if self.brief else cell.note]))


def informative(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> list[Column[Row]]:
    """Leave out the columns in which every cell is missing.

    Args:
        columns: all of them.
        rows: of the table.
    """
    return [column for column in columns if any(column.cell(row) != NOTHING for row in rows)]


def markdown(columns: Sequence[Column[Row]], rows: Sequence[Row], caption: str = "") -> str:
    """Render a markdown table with a caption below.

    Args:
        columns: from left to right; those without any content are left out.
        rows: from top to bottom.
        caption: a paragraph, or nothing.
    """
    shown = informative(columns, rows)
    lines = [[column.heading.strip() for column in shown], ["---" if column.left else "---:" for column in shown]]
    lines += [[column.text(row).replace("|", "\\|") for column in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + (f"\n\n{caption}\n" if caption else "\n")


def terminal(
    columns: Sequence[Column[Row]], rows: Sequence[Row], title: str | None = None, caption: str | None = None
) -> Table:
    """Render a table for a terminal.

    Args:
        columns: from left to right; those without any content are left out.
        rows: from top to bottom.
        title: above the table.
        caption: below it.
    """
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        show_edge=False,
        pad_edge=False,
        caption=caption,
        caption_justify="left",
    )
    shown = informative(columns, rows)
    for column in shown:
        table.add_column(
            column.heading.strip(), justify="left" if column.left else "right", no_wrap=not column.left, overflow="fold"
        )
    for row in rows:
        table.add_row(*(column.text(row) for column in shown))
    return table


# Numbers as a reader sees them, the same in every table.


def milliseconds(value: float) -> str:
    """Format with three digits: ``3.27``, ``54.1``, ``133``.

    Args:
        value: in ms.
    """
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def p_text(value: float) -> str:
    """Format a p value with two decimals, or with one significant digit where it is small.

    Args:
        value: in [0, 1].
    """
    return f"{value:.2f}" if value >= 0.095 else f"{value:.1g}"


def bounds_text(estimate: Estimate, form: str, scale: float = 1) -> str:
    """Format the bounds of an estimate: ``[74.5, 89.1]``.

    Args:
        estimate: whose bounds.
        form: format of a number, e.g. ``".1f"``.
        scale: what numbers are multiplied by, e.g. 100 for percent.
    """
    return f"[{scale * estimate.low:{form}}, {scale * estimate.high:{form}}]"


def interval_text(estimate: Estimate, form: str, scale: float = 1) -> str:
    """Format an estimate with its bounds: ``85.0 [74.5, 89.1]``; arguments as of :func:`bounds_text`."""
    return f"{scale * estimate.value:{form}} {bounds_text(estimate, form, scale)}"


def interval_cell(estimate: Estimate | None, form: str, scale: float = 1) -> Cell:
    """Make a cell of an estimate, sorted by its value; arguments as of :func:`bounds_text`."""
    if estimate is None:
        return NOTHING
    return Cell(f"{scale * estimate.value:{form}}", bounds_text(estimate, form, scale), estimate.value)


def number_ranges(numbers: Sequence[int]) -> str:
    """Format whole numbers with runs drawn together: ``3, 7–9``.

    Args:
        numbers: in any order, repetitions included.
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def counted(number: int, noun: str) -> str:
    """Format a count: ``1 episode``, ``2 episodes``.

    Args:
        number: how many.
        noun: of one.
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


# The columns of a summary of samplers or controllers.


def _counts(row: SummaryRow) -> Cell:
    if row.episodes == 0:
        return NOTHING
    crashed = f", {row.crashed} crashed" if row.crashed else ""
    return Cell(f"{row.successes}/{row.episodes}{crashed}", key=row.episodes)


def _nfe(row: SummaryRow) -> Cell:
    whole, finish = (row.loop.metrics.passes, row.loop.metrics.finish_passes) if row.loop else (None, None)
    if finish is not None:  # a pre-draft was finished
        return Cell(f"{finish:.1f}" if whole is None else f"{finish:.1f} of {whole:.1f}", key=finish)
    nfe = row.nfe if whole is None else whole
    if nfe is None:
        return NOTHING
    error = "" if row.nfe_error is None or row.loop else f"± {row.nfe_error:.1f}"
    return Cell(f"{nfe:.1f}", error, nfe)


def _rows(row: SummaryRow) -> Cell:
    whole, finish = (row.loop.metrics.rows, row.loop.metrics.finish_rows) if row.loop else (None, None)
    if finish is not None:
        return Cell(f"{finish:.0f}" if whole is None else f"{finish:.0f} of {whole:.0f}", key=finish)
    rows = row.rows if whole is None else whole
    return NOTHING if rows is None else Cell(f"{rows:.0f}", key=rows)


def _latency(of: Callable[[LatencySummary], Estimate | None]) -> Callable[[SummaryRow], Cell]:
    def cell(row: SummaryRow) -> Cell:
        found = None if row.latency is None else of(row.latency)
        if found is None:
            return NOTHING
        bounds = f"[{milliseconds(found.low)}, {milliseconds(found.high)}]"
        return Cell(milliseconds(found.value), bounds, found.value)

    return cell


def _speed_up(row: SummaryRow) -> Cell:
    return interval_cell(row.latency.speed_up if row.latency else None, ".2f")


def _difference(row: SummaryRow) -> Cell:
    return interval_cell(row.difference, "+.1f", 100)


def _p_value(row: SummaryRow) -> Cell:
    return NOTHING if row.p_corrected is None else Cell(p_text(row.p_corrected), key=row.p_corrected)


def _verdict(row: SummaryRow) -> Cell | str:
    return NOTHING if row.verdict is None else row.verdict


def _best(row: SummaryRow) -> Cell | str:
    return NOTHING if row.best is None else "✓" if row.best else ""


def _loop(of: Callable[[ControlMetrics], float | None], form: str = ".0f", scale: float = 1) -> Callable[..., Cell]:
    def cell(row: SummaryRow) -> Cell:
        value = of(row.loop.metrics) if row.loop else None
        return NOTHING if value is None else Cell(f"{scale * value:{form}}", key=value)

    return cell


def _quantile(of: Callable[[ControlMetrics], Quantiles | None], name: str) -> Callable[..., Cell]:
    def value(metrics: ControlMetrics) -> float | None:
        quantiles = of(metrics)
        return None if quantiles is None else float(getattr(quantiles, name))

    return _loop(value)


def _seam(quantity: str) -> Callable[[SummaryRow], Cell]:
    """A quantity at borders of chunks, and inside of chunks."""

    def cell(row: SummaryRow) -> Cell:
        metrics = row.loop.metrics if row.loop else None
        border, inner = (
            None if metrics is None else getattr(metrics, f"{at}_{quantity}") for at in ("border", "inner")
        )
        if border is None:
            return NOTHING
        inside = MISSING if inner is None else milliseconds(inner)  # three digits do here, too
        return Cell(f"{milliseconds(border)} / {inside}", key=border)

    return cell


def _loop_latency(row: SummaryRow) -> Cell:
    value = row.loop.latency_ms if row.loop else None
    return NOTHING if value is None else Cell(f"{value:.0f}", key=value)


EXECUTOR = Column[SummaryRow]("executor", lambda row: row.loop.executor if row.loop else MISSING, left=True)
SAMPLER = Column[SummaryRow]("sampler", lambda row: row.sampler, left=True)
DISTRIBUTION = Column[SummaryRow]("distribution", lambda row: distribution_text(row.exact, row.precision), left=True)
INJECTED = Column[SummaryRow]("injected", lambda row: row.loop.injected if row.loop else MISSING, left=True)


def columns_of(rows: Sequence[SummaryRow], reference: str = REFERENCE) -> list[Column[SummaryRow]]:
    """List the columns of a summary of samplers or controllers; what no row knows is left out.

    Args:
        rows: see :func:`summarize`.
        reference: the sampler that others are compared with.
    """
    columns = [
        EXECUTOR,
        SAMPLER,
        DISTRIBUTION,
        INJECTED,
        Column("succeeded", _counts),
        Column("success", lambda row: interval_cell(row.success, ".1f", 100), "% [95 %]"),
        Column("score", lambda row: interval_cell(row.score, ".3f"), "[95 %]"),
        Column("steps to success", lambda row: interval_cell(row.steps, ".0f")),
        Column("NFE / chunk", _nfe),
        Column("rows / chunk", _rows),
        Column("p50 ms", _latency(lambda latency: latency.p50), brief=True),
        Column("p95 ms", _latency(lambda latency: latency.p95), brief=True),
        Column("p99 ms", _latency(lambda latency: latency.p99), brief=True),
        Column(f"× {reference}", _speed_up, "[95 %]"),
        Column("Δ points", _difference, "[95 %]"),
        Column("p", _p_value),
        Column(verdict_title(rows), _verdict, left=True),
        Column("best", _best),
        Column("latency ms", _loop_latency),
        *(
            Column(f"react {name} ms", _quantile(lambda metrics: metrics.reaction_ms, name))
            for name in ("p50", "p95", "p99", "max")
        ),
        Column("age p95 ms", _quantile(lambda metrics: metrics.age_ms, "p95")),
        Column("jitter p99 ms", _quantile(lambda metrics: metrics.jitter_ms, "p99")),
        Column("idle %", _loop(lambda metrics: metrics.idle, ".1f", 100)),
        Column("stale %", _loop(lambda metrics: metrics.stale, ".1f", 100)),
        Column("missed %", _loop(lambda metrics: metrics.missed, ".1f", 100)),
        Column("limited %", _loop(lambda metrics: metrics.limited, ".1f", 100)),
        Column("velocity jump: border / inner", _seam("velocity_jump"), "1/s"),
        Column("jerk: border / inner", _seam("jerk"), "1/s³"),
    ]
    return informative(columns, rows)


def _compact_columns(rows: Sequence[SummaryRow]) -> list[Column[SummaryRow]]:
    """List columns that fit 80 columns of a terminal; the markdown has what is left out here."""
    common = [
        Column("success [95 %]", _compact_success),
        Column("score", lambda row: MISSING if row.score is None else f"{row.score.value:.3f}"),
        Column("NFE", _nfe, brief=True),
        Column("rows", _rows),
        Column("p50", _latency(lambda latency: latency.p50), brief=True),
        Column("p95 ms", _latency(lambda latency: latency.p95), brief=True),
        Column(f"× {REFERENCE}", _compact_speed_up),
    ]
    if not any(row.loop for row in rows):
        return [SAMPLER, replace(DISTRIBUTION, title="kind"), *common, Column("verdict", _verdict, left=True)]
    identity = [
        column for column in (EXECUTOR, SAMPLER, DISTRIBUTION, INJECTED) if len({column.text(row) for row in rows}) > 1
    ]
    return [
        *identity,
        *common,
        Column("react", _quantile(lambda metrics: metrics.reaction_ms, "p50")),
        Column("idle", _loop(lambda metrics: metrics.idle, ".1f", 100)),
        Column("stale", _loop(lambda metrics: metrics.stale, ".1f", 100)),
        Column("jumps", _seam("velocity_jump")),
    ]


def _compact_success(row: SummaryRow) -> str:
    if row.success is None:
        return MISSING
    crashed = f", {row.crashed} crashed" if row.crashed else ""
    return f"{row.successes}/{row.episodes} {bounds_text(row.success, '.0f', 100)}{crashed}"


def _compact_speed_up(row: SummaryRow) -> str:
    estimate = None if row.latency is None else row.latency.speed_up
    return MISSING if estimate is None else f"{estimate.value:.1f}"


def rich_table(rows: Sequence[SummaryRow], title: str | None = None) -> Table:
    """Render a summary for a terminal; what is the same in all rows of controllers is put into the title.

    Args:
        rows: see :func:`summarize`.
        title: above the table.
    """
    parts = [title] if title else []
    if any(row.loop for row in rows):
        for column in (EXECUTOR, SAMPLER, DISTRIBUTION, INJECTED):
            texts = {column.text(row) for row in rows}
            parts += [texts.pop()] if len(texts) == 1 else []
    columns = _compact_columns(rows)
    return terminal(columns, rows, ", ".join(parts) or None, caption_of(rows))


def markdown_table(rows: Sequence[SummaryRow]) -> str:
    """Render a summary as a markdown table with a caption below."""
    return markdown(columns_of(rows), rows, caption_of(rows))


def json_table(rows: Sequence[Any]) -> str:
    """Render every number of the rows as JSON: intervals as ``[value, low, high]``, ``null`` where nothing is known.

    Args:
        rows: dataclasses, e.g. of :func:`summarize`.
    """
    return json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False) + "\n"


def caption_of(rows: Sequence[SummaryRow], reference: str = REFERENCE) -> str:
    """Say what the columns mean, in a few sentences; arguments as of :func:`columns_of`."""
    loops, repeated = any(row.loop for row in rows), any(row.seeds < row.episodes for row in rows)
    compared = any(row.p_value is not None for row in rows)
    parts = []
    if any(row.success for row in rows):
        parts.append(f"{seeds_text(rows)} Success with Clopper–Pearson intervals; crashed episodes count as failures.")
    if any(row.latency for row in rows):
        calls = sorted({row.latency.calls for row in rows if row.latency})
        parts.append(
            f"Latency of one chunk at batch size 1 over {' or '.join(map(str, calls))} calls, samplers in turn."
        )
    if any(row.exact for row in rows):
        parts.append("Exact: the distribution of the DDPM chain with the sampler's own number of steps.")
    if any(row.loop and row.loop.metrics.predicted is not None for row in rows):
        parts.append("With a predictor (in brackets) it is that at the predicted observation, not at the true one.")
    parts += filter(None, [precision_note(row.precision for row in rows)])
    if any(row.nfe for row in rows):
        parts.append("NFE: sequential network evaluations; rows: the states evaluated in them.")
    if compared:
        against = "the same sampler in lockstep" if loops else reference
        parts.append(comparison_text(rows, against, "seed"))
    if repeated:
        parts.append("Repeats of a seed count as a cluster; Δ and p are of the repeats that both samplers have run.")
    if any(row.steps for row in rows):
        parts.append("Steps to success: mean over the episodes that succeeded, with Student's interval over seeds.")
    if any(row.score for row in rows):
        parts.append("Score: mean sum of rewards of an episode, with Student's interval over seeds.")
    if loops:
        parts += [
            "Injected: the latency of a whole inference on the loop's clock; finishing a draft takes its share of NFE.",
            "React: from an observation to the first action computed from it.",
            "Idle: ticks without an action of the policy; stale: actions older than any in lockstep without latency; "
            "missed: ticks that were planned and had no action, or came late.",
            "Jump: mean L2 distance of consecutive actions where the chunk changes, and where it does not.",
        ]
    return " ".join(parts)
