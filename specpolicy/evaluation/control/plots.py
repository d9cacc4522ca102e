"""The picture of a loop: what was computed, what was played, and what the guards did, on one axis of time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from specpolicy.control.inference import InferenceKind
from specpolicy.control.latency import Constant
from specpolicy.control.trace import EpisodeTrace
from specpolicy.evaluation.control.summary import CellRow
from specpolicy.evaluation.labels import label_line_ends
from specpolicy.evaluation.plots import COLORS, PAPER, style_axes
from specpolicy.utils.extras import require
from specpolicy.utils.files import atomic_path

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


_COMPUTING = {InferenceKind.WHOLE: "#0072B2", InferenceKind.DRAFT: "#CC79A7", InferenceKind.FINISH: "#009E73"}
_WORDS = {
    InferenceKind.WHOLE: "whole inference",
    InferenceKind.DRAFT: "draft",
    InferenceKind.FINISH: "finishing a draft",
}
_CHUNKS = ("#56B4E9", "#E69F00")
_SOURCES = {"start": "#d9d9d9", "pause": "#bdbdbd", "guard": "#D55E00"}
_GRID = "#e6e6e6"


def draw_timeline(account: EpisodeTrace, path: Path, title: str = "", seconds: float = 6.0) -> Path:
    """Draw the first ``seconds`` of an episode into a PNG, SVG or PDF file, whichever the suffix says.

    Three panels: bars of what was computed above bars of what was played, chunk by chunk in turning colours (grey where
    the robot waits, red where a guard acted); the age of the observation behind each action; and the actions, with the
    borders of chunks as lines.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    require("matplotlib", "eval")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    bars, ages, actions = figure.subplots(3, 1, sharex=True, height_ratios=(1.1, 1.0, 1.4))
    for axes in (bars, ages, actions):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    _draw_bars(bars, account, seconds)
    _draw_ages(ages, account, seconds)
    _draw_actions(actions, account, seconds)
    end = min(seconds, account.ticks[-1].sent_s + 1 / account.rate_hz)
    actions.set_xlim(0, end)
    actions.set_xlabel("time, s", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")
    return path


def _draw_bars(axes: Any, account: EpisodeTrace, seconds: float) -> None:
    from matplotlib.patches import Patch

    spans: dict[tuple[int, str, float], list[tuple[float, float]]] = defaultdict(list)
    for job in account.jobs:
        if job.begun_s <= seconds:
            end = job.begun_s if job.ended_s is None else job.ended_s
            spans[1, _COMPUTING[job.kind], 1.0].append((job.begun_s, max(end - job.begun_s, 0.004)))
    order = {number: place for place, number in enumerate(dict.fromkeys(row.job for row in account.ticks))}
    for row in account.ticks:
        if row.sent_s <= seconds:
            guarded = row.source == "guard" or row.job is None
            color = _SOURCES[row.source] if guarded else _CHUNKS[order[row.job] % len(_CHUNKS)]
            spans[0, color, 0.55 if row.source == "rest" else 1.0].append((row.sent_s, 1 / account.rate_hz))
    for (level, color, alpha), parts in spans.items():
        axes.broken_barh(parts, (level - 0.35, 0.7), color=color, alpha=alpha, lw=0)
    axes.set_yticks([0, 1], ["played", "computed"], fontsize=9)
    axes.set_ylim(-0.6, 1.6)
    kinds = dict.fromkeys(job.kind for job in account.jobs)
    waited = dict.fromkeys(row.source for row in account.ticks if row.source in _SOURCES)
    handles = [Patch(color=_COMPUTING[kind], label=_WORDS[kind]) for kind in kinds]
    handles += [Patch(color=_SOURCES[source], label=source) for source in waited]
    axes.legend(handles=handles, fontsize=8, frameon=False, ncols=6, loc="lower right", bbox_to_anchor=(1.0, 0.98))


def _draw_ages(axes: Any, account: EpisodeTrace, seconds: float) -> None:
    rows = [row for row in account.ticks if row.sent_s <= seconds]
    ages = [np.nan if row.age_s is None else 1e3 * row.age_s for row in rows]
    axes.step([row.sent_s for row in rows], ages, where="post", color="#000000", linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("age of the\nobservation, ms", fontsize=9)


def _draw_actions(axes: Any, account: EpisodeTrace, seconds: float) -> None:
    rows = [row for row in account.ticks if row.sent_s <= seconds]
    times = [row.sent_s for row in rows]
    for values in np.array([row.action for row in rows]).T:
        axes.step(times, values, where="post", linewidth=0.9)
    for before, row in pairwise(rows):
        if row.job != before.job:
            axes.axvline(row.sent_s, color="#999999", linewidth=0.6, linestyle=":")
    axes.set_ylabel("actions sent", fontsize=9)
