"""Success against latency, a line for each executor and sampler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from specpolicy.atomic import atomic_path
from specpolicy.control.latency import Constant
from specpolicy.evaluation.labels import label_line_ends
from specpolicy.evaluation.looks import COLORS, PAPER
from specpolicy.evaluation.plot import style_axes

from .rows import CellRow

_TICKS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200)
_DODGE = 0.012  # of a decade, between lines, so that intervals do not hide one another


def draw_success(rows: Sequence[CellRow], path: Path, title: str) -> Path | None:
    """Draw into a PNG, SVG or PDF file, whichever the suffix says; None if no row has both success and latency.

    Injected latencies are joined by a line; recorded, measured or log-normal ones are diamonds at their median. Where
    the world waits there is one level line, for the latency changes nothing. Approximate samplers are hollow, dashed.
    """
    known = [row for row in rows if row.summary.success is not None and row.latency_ms is not None]
    if not known:
        return None
    families: dict[tuple[str, str], list[CellRow]] = defaultdict(list)
    for row in known:
        families[row.cell.executor_name, row.cell.sampler].append(row)
    several = len({sampler for _, sampler in families}) > 1
    texts = [
        (f"{executor}, {sampler}" if several else executor) + (" (approx.)" if not family[0].exact else "")
        for (executor, sampler), family in families.items()
    ]
    margin = 0.085 * max(map(len, texts)) + 0.5
    width = 6.6 + margin
    figure = Figure(figsize=(width, 4.6), dpi=160, layout=ConstrainedLayoutEngine(rect=(0, 0, 1 - margin / width, 1)))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    style_axes(axes)
    largest = max(row.latency_ms or 0.0 for row in known)
    axes.set_xscale("symlog", linthresh=25, linscale=0.35)
    axes.set_xlim(-4, max(1.25 * largest, 40))
    axes.set_ylim(-3, 103)
    ends = [
        _draw_family(axes, family, COLORS[place % len(COLORS)], 10 ** (_DODGE * (place - (len(families) - 1) / 2)))
        for place, family in enumerate(families.values())
    ]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if tick <= max(largest, 25)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("latency of one inference, ms", fontsize=10)
    axes.set_ylabel("success, %", fontsize=10)
    axes.set_title(title, fontsize=11, loc="left")
    figure.canvas.draw()  # fixes the layout, on which the places of labels depend
    figure.set_layout_engine("none")
    label_line_ends(axes, ends, texts, [COLORS[place % len(COLORS)] for place in range(len(families))])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")
    return path


def _draw_family(axes: Axes, family: Sequence[CellRow], color: str, dodge: float) -> tuple[float, float]:
    """Points and line of one executor and sampler; where its label's leader begins."""
    face = color if family[0].exact else PAPER
    dashes = "-" if family[0].exact else "--"
    if family[0].cell.executor.rules.world_waits:
        estimate = family[0].summary.success
        assert estimate is not None
        axes.axhspan(100 * estimate.low, 100 * estimate.high, color=color, alpha=0.08, lw=0)
        axes.axhline(100 * estimate.value, color=color, linewidth=1.3, linestyle=dashes)
        return axes.get_xlim()[1], 100 * estimate.value
    injected = sorted((row for row in family if isinstance(row.cell.charge.latency, Constant)), key=_latency)
    axes.plot(
        [_latency(row) * dodge for row in injected],
        [100 * row.summary.success.value for row in injected if row.summary.success],
        dashes,
        color=color,
        linewidth=1.5,
    )
    last = (0.0, 0.0)
    for row in sorted(family, key=_latency):
        estimate = row.summary.success
        assert estimate is not None
        x, (value, low, high) = _latency(row) * dodge, (100 * number for number in estimate)
        marker = "o" if isinstance(row.cell.charge.latency, Constant) else "D"
        axes.errorbar(
            x, value, yerr=[[max(value - low, 0)], [max(high - value, 0)]], fmt=marker, color=color, ecolor=color,
            markerfacecolor=face, markersize=5.5, elinewidth=1.0, capsize=2.0, zorder=3,
        )  # fmt: skip
        last = (x, value)
    return last


def _latency(row: CellRow) -> float:
    assert row.latency_ms is not None
    return row.latency_ms
