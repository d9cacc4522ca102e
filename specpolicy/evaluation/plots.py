"""The picture of a study: how long a chunk takes against how often it succeeds, and where the rounds go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from specpolicy.evaluation.labels import label_line_ends, label_points
from specpolicy.evaluation.latency import LatencyRun
from specpolicy.evaluation.summary import SummaryRow
from specpolicy.utils.files import atomic_path

# Okabe and Ito's colours and further ones between them, told apart by colour-blind readers too; black for the
# reference, which comes first.
COLORS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D00", "#3FA0D8", "#7A4FBF", "#9C3D3D", "#5B7F00",
    "#D4006A", "#00696B", "#8A8A8A", "#E0A100",
)  # fmt: skip
PAPER = "white"


@dataclass(frozen=True)
class SamplerStyle:
    """One sampler's.

    Attributes:
        color: of points, lines and labels.
        label: the name, with a mark if the sampler is approximate.
        exact: None where unknown; approximate ones are hollow and dashed.
    """

    color: str
    label: str
    exact: bool | None

    @property
    def face(self) -> str:
        """What points are filled with."""
        return PAPER if self.exact is False else self.color

    @property
    def line(self) -> str:
        """matplotlib's line style."""
        return "--" if self.exact is False else "-"


def styles_of(rows: Sequence[SummaryRow], cast: Sequence[str] = ()) -> dict[str, SamplerStyle]:
    """A look for each sampler of the rows; those of a ``cast`` keep their colours from one task to the next."""
    order = list(dict.fromkeys([*cast, *(row.sampler for row in rows)]))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(order)}
    return {row.sampler: SamplerStyle(colors[row.sampler], marked_name(row), row.exact) for row in rows}


def marked_name(row: SummaryRow) -> str:
    """The sampler's name, followed by "(approx.)" if it is approximate."""
    return f"{row.sampler} (approx.)" if row.exact is False else row.sampler


GRID, MUTED = "#e6e6e6", "#555555"
_PARTS = 10  # of the chain, in the panel of rounds


class NothingToPlot(ValueError):
    """No sampler has both a success rate and a latency, and none has passes."""


def plot_summary(
    rows: Sequence[SummaryRow], path: str | Path, latency: LatencyRun | None = None, title: str | None = None
) -> Path:
    """Draw :func:`figure_of` into a PNG, SVG or PDF file, whichever the suffix says."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure = figure_of(rows, latency, title)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format=target.suffix.lstrip(".") or "png")
    return target


def figure_of(rows: Sequence[SummaryRow], latency: LatencyRun | None = None, title: str | None = None) -> Figure:
    """One or two panels: latency against success, and passes.

    Exact samplers have filled markers, approximate ones hollow; bars are 95 % intervals. Where the timed calls know
    their rounds, the second panel shows in which part of the chain rounds begin (the number beside a name is their
    mean total), else passes a chunk.

    Args:
        rows: see :func:`summarize`.
        latency: the timed calls behind the rows, if their rounds are to be shown.
        title: above all.

    Raises:
        NothingToPlot: the rows hold neither.
    """
    looks = styles_of(rows)
    timed = [row for row in rows if row.success and row.latency and row.latency.p50]
    counted = [row for row in rows if row.passes is not None]
    rounds = {name: spent for name, spent in rounds_by_tenth(latency).items() if name in looks} if latency else {}
    panels = [bool(timed), bool(counted or rounds)]
    if not any(panels):
        raise NothingToPlot("no sampler has both success and latency, and none has passes: run episodes or time calls")
    margin = 0.09 * (max(map(len, rounds)) + 5) if rounds else 0.0  # inches on the right, for labels of line ends
    width = 1 + 5.2 * sum(panels) + margin
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1 - margin / width, 1))
    figure = Figure(figsize=(width, 4.4), dpi=160, layout=layout)
    FigureCanvasAgg(figure)
    ratios = [1.3, 1.0] if all(panels) else [1.0]
    axes = list(figure.subplots(1, sum(panels), squeeze=False, width_ratios=ratios)[0])
    if title:
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    for axis in axes:
        style_axes(axis)
    if timed:
        prepare_success(axes[0], timed, looks)
    if rounds:
        prepare_rounds(axes[-1], rounds, looks)
    elif counted:
        _draw_passes(axes[-1], counted, looks)
    figure.canvas.draw()  # fixes the layout, on which the places of labels depend
    figure.set_layout_engine("none")
    if timed:
        label_success(axes[0], timed, looks)
    if rounds:
        label_rounds(axes[-1], rounds, looks)
    return figure


def rounds_by_tenth(latency: LatencyRun) -> dict[str, NDArray[np.float64]]:
    """Mean rounds a chunk needs in each tenth of the chain, for samplers that know their rounds.

    A round is counted where it begins. Each entry has shape ``(10,)`` and sums to the mean number of rounds.
    """
    spent: dict[str, NDArray[np.float64]] = {}
    for name, log in latency.samplers.items():
        if not log.rounds:
            continue
        starts = np.array([start for call in log.rounds for start, _ in call])
        length = max(start + accepted + 1 for call in log.rounds for start, accepted in call)
        parts = np.minimum(starts * _PARTS // length, _PARTS - 1)
        spent[name] = np.bincount(parts, minlength=_PARTS) / len(log.rounds)
    return spent


def style_axes(axes: Axes) -> None:
    """Light grid, no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def log_ticks(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers 1, 2, 5, 10, … or, where these would crowd, 1, 10, …"""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 150 * low else (1.0,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _points(rows: Sequence[SummaryRow]) -> list[tuple[float, float]]:
    return [
        (row.latency.p50.value, 100 * row.success.value)
        for row in rows
        if row.latency and row.latency.p50 and row.success
    ]


def prepare_success(axes: Axes, rows: Sequence[SummaryRow], looks: Mapping[str, SamplerStyle]) -> None:
    """Points with intervals on both axes; all rows have success and latency. Labels come when the layout is fixed."""
    for row in rows:
        assert row.latency and row.latency.p50 and row.success
        x, y, look = row.latency.p50, [100 * value for value in row.success], looks[row.sampler]
        axes.errorbar(
            x.value,
            y[0],
            xerr=[[max(x.value - x.low, 0)], [max(x.high - x.value, 0)]],
            yerr=[[max(y[0] - y[1], 0)], [max(y[2] - y[0], 0)]],
            fmt="o",
            markersize=7.5,
            markeredgewidth=1.6,
            color=look.color,
            markerfacecolor=look.face,
            elinewidth=1.1,
            ecolor=look.color,
            capsize=2.5,
            zorder=3,
        )
    xs = [value for row in rows if row.latency and row.latency.p50 for value in row.latency.p50]
    ys = [100 * value for row in rows if row.success for value in row.success]
    axes.set_xlim(min(xs) / 1.6, max(xs) * 1.6)
    margin = 0.12 * max(max(ys) - min(ys), 5)
    axes.set_ylim(max(min(ys) - margin, -2), min(max(ys) + margin, 102))
    log_ticks(axes)
    axes.set_xlabel("latency of one action chunk, median, ms (log scale)", fontsize=10)
    axes.set_ylabel("success, %", fontsize=10)
    style: dict[str, Any] = {
        "marker": "o",
        "color": MUTED,
        "linestyle": "none",
        "markersize": 7,
        "markeredgewidth": 1.5,
    }
    kinds = {row.exact for row in rows}
    handles = [Line2D([], [], label="exact", **style)] if True in kinds else []
    if False in kinds:
        handles.append(Line2D([], [], label="approximate", markerfacecolor=PAPER, **style))
    if handles:
        axes.legend(
            handles=handles, fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2,
            borderaxespad=0.2, handletextpad=0.2, columnspacing=1.2,
        )  # fmt: skip


def label_success(axes: Axes, rows: Sequence[SummaryRow], looks: Mapping[str, SamplerStyle]) -> None:
    """Names beside the points of :func:`prepare_success`, clear of points, bars and one another."""
    bars: list[Bbox] = []
    for row in rows:
        assert row.latency and row.latency.p50 and row.success
        x, y = row.latency.p50, [100 * value for value in row.success]
        bars.append(Bbox.from_extents(x.value / 1.03, y[1], x.value * 1.03, y[2]))
        bars.append(Bbox.from_extents(x.low, y[0] - 0.3, x.high, y[0] + 0.3))
    drawn = [looks[row.sampler] for row in rows]
    label_points(axes, _points(rows), [look.label for look in drawn], [look.color for look in drawn], bars)


def prepare_rounds(axes: Axes, rounds: dict[str, NDArray[np.float64]], looks: Mapping[str, SamplerStyle]) -> None:
    """Lines of :func:`rounds_by_tenth`; labels come when the layout is fixed."""
    middles = (np.arange(_PARTS) + 0.5) * 100 / _PARTS
    for name, spent in rounds.items():
        look = looks[name]
        axes.plot(middles, spent, look.line, color=look.color, linewidth=1.6, marker="o", markersize=3.2)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1.12 * max(float(spent.max()) for spent in rounds.values()))
    axes.set_xlabel("position in the chain, % (0 noise, 100 action)", fontsize=10)
    axes.set_ylabel("rounds a chunk, by the tenth they begin in", fontsize=10)


def label_rounds(axes: Axes, rounds: dict[str, NDArray[np.float64]], looks: Mapping[str, SamplerStyle]) -> None:
    """Names and mean totals at the right ends of the lines of :func:`prepare_rounds`."""
    last = 100 - 50 / _PARTS
    label_line_ends(
        axes,
        [(last, float(spent[-1])) for spent in rounds.values()],
        [f"{looks[name].label} {spent.sum():.1f}" for name, spent in rounds.items()],
        [looks[name].color for name in rounds],
    )


def _draw_passes(axes: Axes, rows: Sequence[SummaryRow], looks: Mapping[str, SamplerStyle]) -> None:
    for height, row in enumerate(rows):
        assert row.passes is not None
        look = looks[row.sampler]
        axes.errorbar(
            row.passes, height, xerr=None if row.passes_error is None else 1.96 * row.passes_error, fmt="o",
            markersize=7.5, markeredgewidth=1.6, color=look.color, capsize=2.5, markerfacecolor=look.face, zorder=3,
        )  # fmt: skip
        axes.annotate(
            f"{row.passes:.1f}", (row.passes, height), xytext=(0, 7), textcoords="offset points", ha="center",
            fontsize=9, color=look.color,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [looks[row.sampler].label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max(row.passes for row in rows if row.passes is not None))
    axes.set_xlabel("sequential network passes a chunk", fontsize=10)
