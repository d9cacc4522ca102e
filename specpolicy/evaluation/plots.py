"""Figures of a summary: success against latency, and how network evaluations are spent along the chain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray
from PIL import Image

from specpolicy.control.latency_log import LatencyRun
from specpolicy.evaluation.statistics import Estimate
from specpolicy.evaluation.summary import SummaryRow
from specpolicy.utils.files import atomic_path

# Okabe and Ito's colours and further ones between them, told apart by colour-blind readers too; black for the
# reference, which comes first.
COLORS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D00", "#3FA0D8", "#7A4FBF", "#9C3D3D", "#5B7F00",
    "#D4006A", "#00696B", "#8A8A8A", "#E0A100",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PAPER, GRID, MUTED = "white", "#e6e6e6", "#555555"
_PARTS = 10  # of the chain, in the panel of rounds
_LATENCY_TICKS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200)
_DODGE = 0.012  # of a decade, between lines, so that intervals do not hide one another


@dataclass(frozen=True)
class SamplerStyle:
    """How a sampler is drawn.

    Attributes:
        color: of points, lines and labels.
        label: the name, with "(approx.)" behind it if the sampler is approximate, and a reduced precision.
        exact: None where unknown; approximate samplers are hollow and dashed.
        marker: matplotlib's marker.
    """

    color: str
    label: str
    exact: bool | None
    marker: str = "o"

    @property
    def face(self) -> str:
        """What points are filled with."""
        return PAPER if self.exact is False else self.color

    @property
    def line(self) -> str:
        """The line style, in matplotlib's words."""
        return "--" if self.exact is False else "-"


def style_at(place: int, label: str, exact: bool | None, precision: str | None = None) -> SamplerStyle:
    """Choose the style of the sampler that comes ``place``-th: its colour and marker are told apart from the others'.

    Args:
        place: counted from 0.
        label: the sampler's name.
        exact: whether it is exact; None where unknown.
        precision: of its network where that was a reduced one.
    """
    name = label.replace("$", r"\$")  # not mathematics
    marks = ", ".join(filter(None, ["approx." if exact is False else "", f"{precision} network" if precision else ""]))
    name = f"{name} ({marks})" if marks else name
    return SamplerStyle(COLORS[place % len(COLORS)], name, exact, MARKERS[place % len(MARKERS)])


def styles_of(rows: Sequence[SummaryRow], order: Sequence[str] = ()) -> dict[str, SamplerStyle]:
    """Choose a style for each sampler.

    Args:
        rows: see :func:`summarize`.
        order: samplers that come first, so that they keep their colours from one task to the next.
    """
    places = {name: place for place, name in enumerate(dict.fromkeys([*order, *(row.sampler for row in rows)]))}
    return {row.sampler: style_at(places[row.sampler], row.sampler, row.exact, row.precision) for row in rows}


class NothingToPlot(ValueError):
    """No row has both a success rate and a latency, and none has network evaluations."""


def plot_summary(
    rows: Sequence[SummaryRow], path: str | Path, latency: LatencyRun | None = None, title: str | None = None
) -> Path:
    """Draw :func:`figure_of` into a file.

    Args:
        rows: see :func:`summarize`.
        path: a PNG, SVG or PDF file, whichever the suffix says.
        latency: see :func:`figure_of`.
        title: see :func:`figure_of`.

    Returns:
        The path.

    Raises:
        NothingToPlot: see :func:`figure_of`.
    """
    return save(figure_of(rows, latency, title), Path(path))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, in the format of the path's suffix, completely or not at all.

    PNG files hold 128 colours, which no plot exceeds to the eye, and take a third of the space: they are tracked.

    Args:
        figure: the figure.
        path: a PNG, SVG or PDF file, whichever the suffix says.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.lstrip(".").lower() or "png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind)
        if kind == "png":
            with Image.open(temporary) as drawn:
                few = drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            few.save(temporary, format="png", optimize=True)
    return path


def figure_of(rows: Sequence[SummaryRow], latency: LatencyRun | None = None, title: str | None = None) -> Figure:
    """Draw one or two panels: success against latency, and network evaluations.

    Exact samplers have filled markers, approximate ones hollow; bars are 95 % intervals. Controllers of one executor
    and sampler are joined by a line. Where the timed calls know their rounds, the second panel shows in which part of
    the chain rounds begin, else network evaluations a chunk.

    Args:
        rows: of samplers or of controllers, see :func:`summarize`.
        latency: the timed calls behind the rows, if their rounds are to be shown.
        title: above all.

    Raises:
        NothingToPlot: the rows hold neither.
    """
    controllers = any(row.loop for row in rows)
    styles = styles_of(rows)
    counted = [row for row in rows if row.nfe is not None and not controllers]
    rounds = {name: spent for name, spent in rounds_by_tenth(latency).items() if name in styles} if latency else {}
    panels = [any(row.success and latency_of(row) for row in rows), bool(counted or rounds)]
    if not any(panels):
        raise NothingToPlot("no sampler has both success and latency, and none has NFE: run episodes or time calls")
    figure = Figure(figsize=(2.6 + 5.0 * sum(panels), 4.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [1.3, 1.0] if all(panels) else [1.0]
    axes = list(figure.subplots(1, sum(panels), squeeze=False, width_ratios=ratios)[0])
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=12, x=0.01, ha="left")
    for axis in axes:
        style_axes(axis)
    if panels[0]:
        draw_success(axes[0], rows, None if controllers else styles)
    if rounds:
        draw_rounds(axes[-1], rounds, styles)
    elif counted:
        _draw_nfe(axes[-1], counted, styles)
    handles, labels = axes[0].get_legend_handles_labels() if panels[0] or rounds else ([], [])
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    return figure


def rounds_by_tenth(latency: LatencyRun) -> dict[str, NDArray[np.float64]]:
    """Count the rounds of a chunk in each tenth of the chain, for samplers that know their rounds.

    Args:
        latency: the timed calls.

    Returns:
        For each sampler an array of shape ``(10,)`` that sums to the mean number of rounds. A round is counted where
        it begins.
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
    """Give axes a light grid and no box.

    Args:
        axes: which.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def log_ticks(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers 1, 2, 5, 10 or, where these would crowd, 1, 10, 100.

    Args:
        axes: with final limits.
    """
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 150 * low else (1.0,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def latency_of(row: SummaryRow) -> Estimate | None:
    """Look up the latency that a row is drawn at, in ms: injected or measured in the loop, else the timed median.

    Args:
        row: see :func:`summarize`.
    """
    if row.loop is not None:
        return None if row.loop.latency_ms is None else Estimate(*3 * (row.loop.latency_ms,))
    return row.latency.p50 if row.latency else None


def draw_success(axes: Axes, rows: Sequence[SummaryRow], styles: Mapping[str, SamplerStyle] | None = None) -> None:
    """Draw success against latency, with intervals on both axes, and label everything for a legend.

    Rows without success or latency are left out. Points of one executor and sampler are joined where the latency is
    injected; recorded or measured ones stand alone. Where the world waits for the policy there is one level line, for
    the latency changes nothing.

    Args:
        axes: where to draw.
        rows: of samplers or of controllers.
        styles: by sampler; None chooses one for each executor and sampler.
    """
    families: dict[tuple[str, str], list[SummaryRow]] = defaultdict(list)
    for row in rows:
        if row.success is not None and latency_of(row) is not None:
            families[row.loop.executor if row.loop else "", row.sampler].append(row)
    several = len({sampler for _, sampler in families}) > 1
    for place, ((executor, sampler), family) in enumerate(families.items()):
        name = sampler if not executor else f"{executor}, {sampler}" if several else executor
        style = styles[sampler] if styles else style_at(place, name, family[0].exact, family[0].precision)
        _draw_family(axes, family, style, 10 ** (_DODGE * (place - (len(families) - 1) / 2)))
    axes.set_ylabel("success, %", fontsize=10)
    if any(row.loop for row in rows):
        largest = max(latency.value for family in families.values() for row in family if (latency := latency_of(row)))
        axes.set_xscale("symlog", linthresh=25, linscale=0.35)
        axes.set_xlim(-4, max(1.25 * largest, 40))
        axes.set_ylim(-3, 103)
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in _LATENCY_TICKS if tick <= max(largest, 25)]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("latency of one inference, ms", fontsize=10)
        return
    drawn = [row for family in families.values() for row in family]
    xs = [bound for row in drawn if (latency := latency_of(row)) for bound in latency]
    ys = [100 * bound for row in drawn if row.success for bound in row.success]
    axes.set_xlim(min(xs) / 1.3, max(xs) * 1.3)
    margin = 0.12 * max(max(ys) - min(ys), 5)
    axes.set_ylim(max(min(ys) - margin, -2), min(max(ys) + margin, 102))
    log_ticks(axes)
    axes.set_xlabel("latency of one action chunk, median, ms (log scale)", fontsize=10)


def _draw_family(axes: Axes, family: Sequence[SummaryRow], style: SamplerStyle, dodge: float) -> None:
    """Draw the points of one executor and sampler, and the line that joins injected latencies."""
    loop = family[0].loop
    if loop is not None and loop.world_waits:
        estimate = family[0].success
        assert estimate is not None
        axes.axhspan(100 * estimate.low, 100 * estimate.high, color=style.color, alpha=0.08, lw=0)
        axes.axhline(100 * estimate.value, color=style.color, lw=1.3, ls=style.line, label=style.label)
        return
    points = []
    for row in family:
        latency, success = latency_of(row), row.success
        assert latency is not None and success is not None
        shift = 1.0 if row.loop is None else dodge
        x, y = [shift * value for value in latency], [100 * value for value in success]
        points.append((x[0], y[0], row.loop is not None and row.loop.constant))
        axes.errorbar(
            x[0],
            y[0],
            xerr=[[max(x[0] - x[1], 0)], [max(x[2] - x[0], 0)]] if row.loop is None else None,
            yerr=[[max(y[0] - y[1], 0)], [max(y[2] - y[0], 0)]],
            fmt=style.marker,
            markersize=7.0 if row.loop is None else 5.5,
            markeredgewidth=1.5,
            color=style.color,
            markerfacecolor=style.face,
            elinewidth=1.1,
            ecolor=style.color,
            capsize=2.5,
            zorder=3,
            label=style.label if len(points) == 1 else None,
        )
    line = sorted((x, y) for x, y, injected in points if injected)
    if len(line) > 1:
        axes.plot(*zip(*line, strict=True), style.line, color=style.color, linewidth=1.5)


def draw_rounds(axes: Axes, rounds: Mapping[str, NDArray[np.float64]], styles: Mapping[str, SamplerStyle]) -> None:
    """Draw lines of :func:`rounds_by_tenth`, labelled with the mean total for a legend.

    Args:
        axes: where to draw.
        rounds: by sampler.
        styles: by sampler.
    """
    middles = (np.arange(_PARTS) + 0.5) * 100 / _PARTS
    for name, spent in rounds.items():
        style = styles[name]
        axes.plot(
            middles, spent, style.line, color=style.color, linewidth=1.6, marker=style.marker, markersize=4,
            markerfacecolor=style.face, label=f"{style.label}: {spent.sum():.1f}",
        )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1.12 * max(float(spent.max()) for spent in rounds.values()))
    axes.set_xlabel("position in the chain, % (0 noise, 100 action)", fontsize=10)
    axes.set_ylabel("rounds a chunk, by the tenth they begin in", fontsize=10)


def _draw_nfe(axes: Axes, rows: Sequence[SummaryRow], styles: Mapping[str, SamplerStyle]) -> None:
    for height, row in enumerate(rows):
        assert row.nfe is not None
        style = styles[row.sampler]
        axes.errorbar(
            row.nfe, height, xerr=None if row.nfe_error is None else 1.96 * row.nfe_error, fmt=style.marker,
            markersize=7, markeredgewidth=1.5, color=style.color, capsize=2.5, markerfacecolor=style.face, zorder=3,
        )  # fmt: skip
        axes.annotate(
            f"{row.nfe:.1f}", (row.nfe, height), xytext=(0, 7), textcoords="offset points", ha="center",
            fontsize=9, color=style.color,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [styles[row.sampler].label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max(row.nfe for row in rows if row.nfe is not None))
    axes.set_xlabel("sequential network evaluations a chunk", fontsize=10)
