"""The figures of one task. Each is left out where the results have nothing to draw."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from specpolicy.evaluation.labels import label_line_ends
from specpolicy.evaluation.plots import (
    COLORS,
    GRID,
    MUTED,
    SamplerStyle,
    label_rounds,
    label_success,
    log_ticks,
    prepare_rounds,
    prepare_success,
    rounds_by_tenth,
    style_axes,
)
from specpolicy.evaluation.report.results import RealTimeBudget, TaskResults, acceptance_of
from specpolicy.evaluation.summary import NS_PER_MS, SummaryRow
from specpolicy.rollout.episodes import EpisodeResult

# What a figure is drawn with → the page's custom property that takes its place.
_PROPERTIES = {color.lower(): f"--s{index}" for index, color in enumerate(COLORS)} | {
    GRID: "--grid",
    MUTED: "--muted",
    "#ffffff": "--paper",
}


def inline_svg(figure: Figure, label: str, prefix: str) -> str:
    """The figure as an ``<svg>`` element for a page: texts as texts, no reference to anything outside.

    Args:
        figure: laid out; its background is left out.
        label: read to those who cannot see it.
        prefix: makes the ids inside unique on the page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "specpolicy"}):
        figure.savefig(buffer, format="svg", transparent=True)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    opening, rest = drawing.split(">", 1)
    opening = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", opening)
    rest = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", rest, flags=re.DOTALL)
    rest = re.sub(r"#[0-9a-f]{6}\b", lambda match: property_of(match[0]), rest)
    rest = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", rest)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', rest))
    rest = re.sub(r' id="([^"]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", rest)
    rest = re.sub(r'xlink:href="#|(?<=url\()#', lambda match: f"{match[0].removeprefix('xlink:')}{prefix}-", rest)
    rest = re.sub(r"\s*\n\s*", "\n", rest)
    return f'{opening} role="img" aria-label="{escape(label)}">{rest}'


def property_of(color: str) -> str:
    """The CSS value that takes the place of a colour on the page."""
    name = _PROPERTIES.get(color.lower())
    return f"var({name})" if name else color


WIDTH, HEIGHT = 4.8, 3.2  # inches
_INCHES_A_LETTER = 0.075


def framed(
    prepare: Callable[[Axes], None],
    finish: Callable[[Axes], None] | None = None,
    height: float = HEIGHT,
    beside: Sequence[str] = (),
) -> Figure:
    """A figure with one pair of axes.

    Args:
        prepare: draws what decides the layout.
        finish: draws what depends on it: labels beside points and lines.
        height: in inches.
        beside: labels that need room to the right of the axes.
    """
    margin = (_INCHES_A_LETTER * max(map(len, beside)) + 0.2) / WIDTH if beside else 0.0
    # 72 dots an inch is the resolution of vector formats: nothing moves when the figure is saved.
    figure = Figure(figsize=(WIDTH, height), dpi=72, layout=ConstrainedLayoutEngine(rect=(0, 0, 1 - margin, 1)))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    style_axes(axes)
    prepare(axes)
    figure.canvas.draw()
    figure.set_layout_engine("none")
    if finish is not None:
        finish(axes)
    return figure


_NORMAL_95 = 1.96


def rounds_lines(results: TaskResults) -> Figure | None:
    """Where along the chain rounds begin; see :func:`rounds_by_tenth`."""
    rounds = rounds_by_tenth(results.latency) if results.latency else {}
    if not rounds:
        return None

    def prepare(axes: Axes) -> None:
        prepare_rounds(axes, rounds, results.looks)
        axes.set_ylabel("rounds", fontsize=10)

    def finish(axes: Axes) -> None:
        label_rounds(axes, rounds, results.looks)

    return framed(prepare, finish, beside=[results.looks[name].label + " 00.0" for name in rounds])


def acceptance_lines(results: TaskResults) -> Figure | None:
    """Probability that a drafted step is accepted, along the chain, with 95 % bands."""
    logs = results.latency.samplers if results.latency else {}
    found = {name: acceptance for name, log in logs.items() if (acceptance := acceptance_of(log)) is not None}
    if not found:
        return None
    names = {name: f"{results.looks[name].label} {100 * each.overall:.0f} %" for name, each in found.items()}

    def prepare(axes: Axes) -> None:
        for name, each in found.items():
            look, half = results.looks[name], _NORMAL_95 * np.nan_to_num(each.error)
            low, high = np.clip(each.rate - half, 0, 1), np.clip(each.rate + half, 0, 1)
            axes.fill_between(each.position, 100 * low, 100 * high, color=look.color, alpha=0.15, linewidth=0)
            axes.plot(each.position, 100 * each.rate, look.line, color=look.color, linewidth=1.6)
        axes.set_xlim(0, 100)
        axes.set_ylim(min(50.0, *(100 * float(each.rate.min()) - 5 for each in found.values())), 102)
        axes.set_xlabel("position in the chain, % (0 noise, 100 action)", fontsize=10)
        axes.set_ylabel("drafted step accepted, %", fontsize=10)

    def finish(axes: Axes) -> None:
        ends = [(float(each.position[-1]), 100 * float(each.rate[-1])) for each in found.values()]
        label_line_ends(axes, ends, list(names.values()), [results.looks[name].color for name in found])

    return framed(prepare, finish, beside=list(names.values()))


def steps_lines(results: TaskResults) -> Figure | None:
    """Share of episodes that have succeeded within so many environment steps."""
    return _success_lines(results, lambda record: float(record.steps), "environment steps")


def seconds_lines(results: TaskResults, pace: RealTimeBudget | None) -> Figure | None:
    """The same against the seconds of a robot that stands still while its policy computes."""
    medians = {row.sampler: row.latency.p50.value / 1e3 for row in results.rows if row.latency and row.latency.p50}
    if pace is None or not medians:
        return None

    def seconds(record: EpisodeResult) -> float | None:
        if record.sampler not in medians:
            return None
        return record.steps / pace.control_hz + record.chunks * medians[record.sampler]

    return _success_lines(results, seconds, "seconds, waiting for the policy included")


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
    rows = [row for row in results.rows if row.sampler in ended]
    if not any(ended.values()):
        return None

    def prepare(axes: Axes) -> None:
        for row in rows:
            look = results.looks[row.sampler]
            x = [0.0, *sorted(ended[row.sampler]), longest]
            y = 100 * np.append(np.arange(len(x) - 1), len(x) - 2) / row.episodes
            axes.step(x, y, where="post", color=look.color, linestyle=look.line, linewidth=1.5)
        axes.set_xlim(0, longest)
        axes.set_ylim(0, 101)
        axes.set_xlabel(axis_label, fontsize=10)
        axes.set_ylabel("succeeded so far, %", fontsize=10)

    def finish(axes: Axes) -> None:
        ends = [(longest, 100 * len(ended[row.sampler]) / row.episodes) for row in rows]
        looks = [results.looks[row.sampler] for row in rows]
        label_line_ends(axes, ends, [look.label for look in looks], [look.color for look in looks])

    return framed(prepare, finish, beside=[results.looks[row.sampler].label for row in rows])


_RISE, _MOST_TICKS = 0.72, 150


def latency_ridges(results: TaskResults, pace: RealTimeBudget | None) -> Figure | None:
    """Density of the timed calls on a logarithmic axis, each call a tick below it; bars at the median and at p95."""
    logs = results.latency.samplers if results.latency else {}
    rows = [row for row in results.rows if row.sampler in logs and logs[row.sampler].nanoseconds]
    if not rows:
        return None

    def ridge(axes: Axes, base: float, row: SummaryRow, look: SamplerStyle) -> None:
        calls = np.sort(np.asarray(logs[row.sampler].nanoseconds) / NS_PER_MS)
        crest = _density(axes, base, calls, look)
        thinned = calls[np.linspace(0, len(calls) - 1, min(len(calls), _MOST_TICKS)).round().astype(int)]
        axes.vlines(thinned, base + 0.05, base + 0.17, color=look.color, linewidth=0.5, alpha=0.6)
        for quantile, width in ((0.5, 2.0), (0.95, 1.0)):
            at = float(np.quantile(calls, quantile))
            axes.vlines(at, base - crest(at), base + 0.17, color=look.color, linewidth=width)

    def limits(axes: Axes) -> None:
        log_ticks(axes)
        axes.set_xlabel("latency of a chunk, ms (log scale)", fontsize=10)
        low, high = axes.get_xlim()
        if pace and low / 1.5 < pace.chunk_ms < high * 1.5:
            axes.axvline(pace.chunk_ms, color=MUTED, linewidth=1, linestyle=":")
            axes.annotate(
                f"{pace.chunk_ms:.0f} ms: a chunk is used up", (pace.chunk_ms, 1), xycoords=("data", "axes fraction"),
                xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=9, color=MUTED,
            )  # fmt: skip

    return _ridges(results, rows, ridge, limits)


def passes_ridges(results: TaskResults) -> Figure | None:
    """Share of chunks by the number of network passes, on a logarithmic axis."""
    counts: dict[str, list[int]] = {}
    for record in results.records:
        counts.setdefault(record.sampler, []).extend(record.passes)
    for name, log in (results.latency.samplers if results.latency else {}).items():
        counts.setdefault(name, log.passes)
    rows = [row for row in results.rows if counts.get(row.sampler)]
    if not rows:
        return None

    def ridge(axes: Axes, base: float, row: SummaryRow, look: SamplerStyle) -> None:
        values, chunks = np.unique(counts[row.sampler], return_counts=True)
        axes.bar(
            values, -_RISE * chunks / chunks.max(), width=0.8, bottom=base, linewidth=0.8, edgecolor=look.color,
            facecolor=look.face if row.exact is False else (look.color, 0.55), linestyle=look.line,
        )  # fmt: skip

    def limits(axes: Axes) -> None:
        log_ticks(axes)
        axes.set_xlabel("network passes of a chunk (log scale)", fontsize=10)

    return _ridges(results, rows, ridge, limits)


def _ridges(
    results: TaskResults,
    rows: Sequence[SummaryRow],
    ridge: Callable[[Axes, float, SummaryRow, SamplerStyle], None],
    limits: Callable[[Axes], None],
) -> Figure:
    def prepare(axes: Axes) -> None:
        for base, row in enumerate(rows):
            ridge(axes, float(base), row, results.looks[row.sampler])
        limits(axes)
        axes.set_yticks(range(len(rows)), [results.looks[row.sampler].label for row in rows], va="bottom")
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(results.looks[row.sampler].color)
        axes.set_ylim(len(rows) - 0.7, -0.95)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return framed(prepare, height=max(1.9, 0.8 + 0.42 * len(rows)))


def _density(axes: Axes, base: float, values: NDArray[np.float64], look: SamplerStyle) -> Callable[[float], float]:
    """Draw the density of sorted positive values over ``log(value)``; returns how high it stands at a value.

    Gaussian kernels as wide as Scott's rule says.
    """
    logs = np.log(values)
    width = float(logs.std()) * len(logs) ** -0.2
    if len(values) < 5 or width < 1e-9:
        return lambda value: _RISE / 2

    def kernels(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.exp(-0.5 * ((at[:, None] - logs) / width) ** 2).sum(axis=1))

    grid = np.linspace(logs[0] - 3 * width, logs[-1] + 3 * width, 160)
    top = float(kernels(grid).max())
    crest = _RISE * kernels(grid) / top
    if look.exact is not False:
        axes.fill_between(np.exp(grid), base - crest, base, color=look.color, alpha=0.3, linewidth=0)
    axes.plot(np.exp(grid), base - crest, look.line, color=look.color, linewidth=1.1)
    return lambda value: _RISE * float(kernels(np.log([value]))[0]) / top


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        title: what it answers.
        svg: an ``<svg>`` element.
        caption: how to read it.
    """

    title: str
    svg: str
    caption: str


def pictures_of(results: TaskResults, pace: RealTimeBudget | None, prefix: str) -> list[Picture]:
    """All figures that the results have something for, in the order of reading.

    Args:
        results: of one task.
        pace: of its robot, if known.
        prefix: makes ids unique on the page.
    """
    drawn = []
    for key, title, caption, draw in _plan(results, pace):
        figure = draw()
        if figure is not None:
            label = f"{results.task}: {title}. {caption}"
            drawn.append(Picture(title, inline_svg(figure, label, prefix + key), caption))
    return drawn


def _plan(
    results: TaskResults, pace: RealTimeBudget | None
) -> Iterator[tuple[str, str, str, Callable[[], Figure | None]]]:
    yield (
        "tradeoff", "Latency against success",
        "Up and to the left is better. Bars are 95 % intervals on both axes; hollow points are approximate samplers.",
        lambda: tradeoff(results),
    )  # fmt: skip
    yield (
        "latency", "How long a chunk takes",
        "Density of the timed calls, one tick a call below it; the bars stand at the median (thick) and p95 (thin). "
        "Approximate samplers are dashed and not filled.",
        lambda: latency_ridges(results, pace),
    )  # fmt: skip
    yield (
        "acceptance", "How often a drafted step is accepted",
        "Of the drafted steps that verification reached, in each part of the chain; bands are 95 % intervals between "
        "calls. The number beside a name is its share over the whole chain.",
        lambda: acceptance_lines(results),
    )  # fmt: skip
    yield (
        "rounds", "Where the rounds begin",
        "Rounds of a chunk by the tenth of the chain they begin in. The number beside a name is their mean total.",
        lambda: rounds_lines(results),
    )  # fmt: skip
    yield (
        "passes", "Passes of a chunk",
        "How many chunks took how many network passes one after another; each row is scaled to its highest bar.",
        lambda: passes_ridges(results),
    )  # fmt: skip
    yield (
        "steps", "Steps to success",
        "Share of all episodes that have succeeded; crashed and failed ones never do. Approximate samplers are dashed.",
        lambda: steps_lines(results),
    )  # fmt: skip
    yield (
        "seconds", "Seconds to success on the robot",
        "The same episodes on the clock of a robot that stands still while its policy computes: "
        + (f"steps at {pace.control_hz:g} Hz and each chunk at its sampler's median latency." if pace else ""),
        lambda: seconds_lines(results, pace),
    )  # fmt: skip


def tradeoff(results: TaskResults) -> Figure | None:
    """Latency against success, intervals on both axes."""
    rows = [row for row in results.rows if row.success and row.latency and row.latency.p50]
    if not rows:
        return None

    def prepare(axes: Axes) -> None:
        prepare_success(axes, rows, results.looks)
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.4, high * 1.4)  # room for names beside the outermost points of a narrow figure

    def finish(axes: Axes) -> None:
        label_success(axes, rows, results.looks)

    return framed(prepare, finish, height=3.7)
