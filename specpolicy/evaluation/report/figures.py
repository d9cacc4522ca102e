"""The figures of one task. Each is left out where the results have nothing to draw."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from specpolicy.control.latency_log import CallLog
from specpolicy.evaluation.plots import (
    MUTED,
    SamplerStyle,
    draw_rounds,
    draw_success,
    latency_of,
    log_ticks,
    rounds_by_tenth,
    style_axes,
)
from specpolicy.evaluation.report.results import RealTimeBudget, TaskResults
from specpolicy.evaluation.statistics import ratio_of_sums
from specpolicy.evaluation.summary import NS_PER_MS, SummaryRow
from specpolicy.rollout.episodes import EpisodeResult

_WIDTH, _HEIGHT = 6.4, 3.5  # inches
_NORMAL_95 = 1.96
_RIDGE_HEIGHT, _MAX_TICKS = 0.72, 150
_PARTS = 25  # of the chain


@dataclass(frozen=True)
class Acceptance:
    """Acceptance by part of the chain; entry ``i`` of each array belongs to one part.

    Attributes:
        position: middle of the part, 0 (noise) to 100 (action).
        rate: share of its drafted steps that were accepted, of those that verification reached.
        error: standard error of the rate, between calls; NaN where it is not known.
        overall: the share over the whole chain.
    """

    position: NDArray[np.float64]
    rate: NDArray[np.float64]
    error: NDArray[np.float64]
    overall: float


def acceptance_along_chain(log: CallLog) -> Acceptance | None:
    """Compute the acceptance of a sampler along the chain.

    A round that starts at ``s``, drafts ``d`` steps and accepts ``a`` of them has accepted the steps ``s … s + a − 1``
    and, if ``a < d``, rejected step ``s + a``; it says nothing of later ones.

    Args:
        log: its timed calls.

    Returns:
        The acceptance; None if there are no rounds or the log does not say how much each of them drafted.
    """
    if not log.rounds or not log.drafted:
        return None
    steps = max(start + accepted + 1 for call in log.rounds for start, accepted in call)
    parts = min(_PARTS, steps)
    tried, taken = np.zeros((2, len(log.rounds), steps))
    for call, (rounds, drafted) in enumerate(zip(log.rounds, log.drafted, strict=True)):
        for (start, accepted), length in zip(rounds, drafted, strict=True):
            tried[call, start : start + accepted + (accepted < length)] += 1
            taken[call, start : start + accepted] += 1
    edges = np.linspace(0, steps, parts + 1).round().astype(int)[:-1]
    tried, taken = np.add.reduceat(tried, edges, axis=1), np.add.reduceat(taken, edges, axis=1)
    known = np.flatnonzero(tried.sum(axis=0))
    if not len(known):
        return None
    found = np.array([ratio_of_sums(taken[:, part], tried[:, part]) for part in known])
    middles = 100 * (edges + np.append(edges[1:], steps)) / 2 / steps
    return Acceptance(middles[known], found[:, 0], found[:, 1], float(taken.sum() / tried.sum()))


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        title: what it answers.
        source: the image as a data URI.
        alt: read to those who cannot see it.
        caption: how to read it.
    """

    title: str
    source: str
    alt: str
    caption: str


def pictures_of(results: TaskResults, budget: RealTimeBudget | None) -> list[Picture]:
    """Draw all figures that the results have something for, in the order of reading.

    Args:
        results: of one task.
        budget: of its robot, if known.
    """
    drawn = []
    for title, caption, figure in _figures(results, budget):
        if figure is not None:
            drawn.append(Picture(title, data_uri(figure), f"{results.task}: {title}. {caption}", caption))
    return drawn


def data_uri(figure: Figure) -> str:
    """Encode a figure as an SVG image that needs nothing outside itself.

    Args:
        figure: laid out.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "specpolicy"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _figures(results: TaskResults, budget: RealTimeBudget | None) -> Iterator[tuple[str, str, Figure | None]]:
    yield (
        "Latency against success",
        "Up and to the left is better. Bars are 95 % intervals on both axes; hollow points are approximate samplers.",
        tradeoff(results),
    )
    yield (
        "Latency of a chunk",
        "Density of the timed calls, one tick a call below it; the bars stand at the median (thick) and p95 (thin). "
        "Approximate samplers are dashed and not filled.",
        latency_ridges(results, budget),
    )
    yield (
        "Acceptance along the chain",
        "Share of the drafted steps that were accepted, of those that verification reached; bands are 95 % intervals "
        "between calls. The legend has the share over the whole chain.",
        acceptance_lines(results),
    )
    yield (
        "Verification rounds along the chain",
        "Rounds of a chunk by the tenth of the chain they begin in. The legend has their mean total.",
        rounds_lines(results),
    )
    yield (
        "Network evaluations of a chunk",
        "How many chunks took how many sequential network evaluations; each row is scaled to its highest bar.",
        nfe_ridges(results),
    )
    yield (
        "Steps to success",
        "Share of all episodes that have succeeded; crashed and failed ones never do. Approximate samplers are dashed.",
        steps_lines(results),
    )
    yield (
        "Seconds to success on the robot",
        "The same episodes on the clock of a robot that stands still while its policy computes: "
        + (f"steps at {budget.control_hz:g} Hz and each chunk at its sampler's median latency." if budget else ""),
        seconds_lines(results, budget),
    )


def tradeoff(results: TaskResults) -> Figure | None:
    """Draw latency against success, intervals on both axes.

    Args:
        results: of one task.
    """
    if not any(row.success and latency_of(row) for row in results.rows):
        return None
    return _framed(lambda axes: draw_success(axes, results.rows, results.styles))


def rounds_lines(results: TaskResults) -> Figure | None:
    """Draw where along the chain rounds begin; see :func:`rounds_by_tenth`.

    Args:
        results: of one task.
    """
    rounds = rounds_by_tenth(results.latency) if results.latency else {}
    return _framed(lambda axes: draw_rounds(axes, rounds, results.styles)) if rounds else None


def acceptance_lines(results: TaskResults) -> Figure | None:
    """Draw the probability that a drafted step is accepted, along the chain, with 95 % bands.

    Args:
        results: of one task.
    """
    logs = results.latency.samplers if results.latency else {}
    found = {name: acceptance for name, log in logs.items() if (acceptance := acceptance_along_chain(log)) is not None}
    if not found:
        return None

    def draw(axes: Axes) -> None:
        for name, each in found.items():
            style, half = results.styles[name], _NORMAL_95 * np.nan_to_num(each.error)
            low, high = np.clip(each.rate - half, 0, 1), np.clip(each.rate + half, 0, 1)
            axes.fill_between(each.position, 100 * low, 100 * high, color=style.color, alpha=0.15, linewidth=0)
            label = f"{style.label}: {100 * each.overall:.0f} %"
            axes.plot(each.position, 100 * each.rate, style.line, color=style.color, linewidth=1.6, label=label)
        axes.set_xlim(0, 100)
        axes.set_ylim(min(50.0, *(100 * float(each.rate.min()) - 5 for each in found.values())), 102)
        axes.set_xlabel("position in the chain, % (0 noise, 100 action)", fontsize=10)
        axes.set_ylabel("drafted step accepted, %", fontsize=10)

    return _framed(draw)


def steps_lines(results: TaskResults) -> Figure | None:
    """Draw the share of episodes that have succeeded within so many environment steps.

    Args:
        results: of one task.
    """
    return _success_lines(results, lambda record: float(record.steps), "environment steps")


def seconds_lines(results: TaskResults, budget: RealTimeBudget | None) -> Figure | None:
    """Draw the same against the seconds of a robot that stands still while its policy computes.

    Args:
        results: of one task.
        budget: of its robot, if known.
    """
    medians = {row.sampler: row.latency.p50.value / 1e3 for row in results.rows if row.latency and row.latency.p50}
    if budget is None or not medians:
        return None

    def seconds(record: EpisodeResult) -> float | None:
        if record.sampler not in medians:
            return None
        return record.steps / budget.control_hz + record.chunks * medians[record.sampler]

    return _success_lines(results, seconds, "seconds, waiting for the policy included")


def latency_ridges(results: TaskResults, budget: RealTimeBudget | None) -> Figure | None:
    """Draw the density of the timed calls on a logarithmic axis, each call a tick below it, with median and p95.

    Args:
        results: of one task.
        budget: of its robot, if known.
    """
    logs = results.latency.samplers if results.latency else {}
    rows = [row for row in results.rows if row.sampler in logs and logs[row.sampler].nanoseconds]
    if not rows:
        return None

    def ridge(axes: Axes, base: float, row: SummaryRow, style: SamplerStyle) -> None:
        calls = np.sort(np.asarray(logs[row.sampler].nanoseconds) / NS_PER_MS)
        height_at = _density(axes, base, calls, style)
        thinned = calls[np.linspace(0, len(calls) - 1, min(len(calls), _MAX_TICKS)).round().astype(int)]
        axes.vlines(thinned, base + 0.05, base + 0.17, color=style.color, linewidth=0.5, alpha=0.6)
        for quantile, width in ((0.5, 2.0), (0.95, 1.0)):
            at = float(np.quantile(calls, quantile))
            axes.vlines(at, base - height_at(at), base + 0.17, color=style.color, linewidth=width)

    def limits(axes: Axes) -> None:
        log_ticks(axes)
        axes.set_xlabel("latency of a chunk, ms (log scale)", fontsize=10)
        low, high = axes.get_xlim()
        if budget and low / 1.5 < budget.chunk_ms < high * 1.5:
            axes.axvline(budget.chunk_ms, color=MUTED, linewidth=1, linestyle=":")
            axes.annotate(
                f"{budget.chunk_ms:.0f} ms: a chunk is used up", (budget.chunk_ms, 1),
                xycoords=("data", "axes fraction"), xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=9,
                color=MUTED,
            )  # fmt: skip

    return _ridges(results, rows, ridge, limits)


def nfe_ridges(results: TaskResults) -> Figure | None:
    """Draw the share of chunks by the number of network evaluations, on a logarithmic axis.

    Args:
        results: of one task.
    """
    counts: dict[str, list[int]] = {}
    for record in results.records:
        counts.setdefault(record.sampler, []).extend(record.passes)
    for name, log in (results.latency.samplers if results.latency else {}).items():
        counts.setdefault(name, log.passes)
    rows = [row for row in results.rows if counts.get(row.sampler)]
    if not rows:
        return None

    def ridge(axes: Axes, base: float, row: SummaryRow, style: SamplerStyle) -> None:
        values, chunks = np.unique(counts[row.sampler], return_counts=True)
        axes.bar(
            values, -_RIDGE_HEIGHT * chunks / chunks.max(), width=0.8, bottom=base, linewidth=0.8,
            edgecolor=style.color, facecolor=style.face if row.exact is False else (style.color, 0.55),
            linestyle=style.line,
        )  # fmt: skip

    def limits(axes: Axes) -> None:
        log_ticks(axes)
        axes.set_xlabel("network evaluations of a chunk (log scale)", fontsize=10)

    return _ridges(results, rows, ridge, limits)


def _framed(draw: Callable[[Axes], None], height: float = _HEIGHT) -> Figure:
    """Make a figure with one pair of axes, and a legend beside it for what has a label."""
    figure = Figure(figsize=(_WIDTH, height), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    style_axes(axes)
    draw(axes)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _success_lines(
    results: TaskResults, length: Callable[[EpisodeResult], float | None], axis_label: str
) -> Figure | None:
    ended: dict[str, list[float]] = {}
    longest = 0.0
    for record in results.records:
        took = length(record)
        if took is not None:
            ended.setdefault(record.sampler, [])
            longest = max(longest, took)
            if record.success:
                ended[record.sampler].append(took)
    if not any(ended.values()):
        return None

    def draw(axes: Axes) -> None:
        for row in results.rows:
            if row.sampler not in ended:
                continue
            style = results.styles[row.sampler]
            x = [0.0, *sorted(ended[row.sampler]), longest]
            y = 100 * np.append(np.arange(len(x) - 1), len(x) - 2) / row.episodes
            axes.step(
                x, y, where="post", color=style.color, linestyle=style.line, linewidth=1.5, label=style.label
            )  # fmt: skip
        axes.set_xlim(0, longest)
        axes.set_ylim(0, 101)
        axes.set_xlabel(axis_label, fontsize=10)
        axes.set_ylabel("succeeded so far, %", fontsize=10)

    return _framed(draw)


def _ridges(
    results: TaskResults,
    rows: Sequence[SummaryRow],
    ridge: Callable[[Axes, float, SummaryRow, SamplerStyle], None],
    limits: Callable[[Axes], None],
) -> Figure:
    def draw(axes: Axes) -> None:
        for base, row in enumerate(rows):
            ridge(axes, float(base), row, results.styles[row.sampler])
        limits(axes)
        axes.set_yticks(range(len(rows)), [results.styles[row.sampler].label for row in rows], va="bottom")
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(results.styles[row.sampler].color)
        axes.set_ylim(len(rows) - 0.7, -0.95)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return _framed(draw, height=max(1.9, 0.8 + 0.36 * len(rows)))


def _density(axes: Axes, base: float, values: NDArray[np.float64], style: SamplerStyle) -> Callable[[float], float]:
    """Draw the density of sorted positive values over their logarithm; return its height at a value."""
    from scipy.stats import gaussian_kde

    logs = np.log(values)
    if len(values) < 5 or float(logs.std()) < 1e-9:
        return lambda value: _RIDGE_HEIGHT / 2
    kernel = gaussian_kde(logs)
    margin = 3 * float(logs.std()) * kernel.factor
    grid = np.linspace(logs[0] - margin, logs[-1] + margin, 160)
    density = kernel(grid)
    height = _RIDGE_HEIGHT * density / density.max()
    if style.exact is not False:
        axes.fill_between(np.exp(grid), base - height, base, color=style.color, alpha=0.3, linewidth=0)
    axes.plot(np.exp(grid), base - height, style.line, color=style.color, linewidth=1.1)
    return lambda value: float(_RIDGE_HEIGHT * kernel(np.log(value))[0] / density.max())
