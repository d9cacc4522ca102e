"""The timeline of a control loop: what was computed, what was played, and where guards acted, on one axis of time."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from specpolicy.control.inference import InferenceKind
from specpolicy.control.metrics import velocity_jumps
from specpolicy.control.trace import EpisodeTrace
from specpolicy.evaluation.plots import GRID, save

_COMPUTING = {InferenceKind.WHOLE: "#0072B2", InferenceKind.DRAFT: "#CC79A7", InferenceKind.FINISH: "#009E73"}
_WORDS = {
    InferenceKind.WHOLE: "whole inference",
    InferenceKind.DRAFT: "draft",
    InferenceKind.FINISH: "finishing a draft",
}
_CHUNKS = ("#56B4E9", "#E69F00")
_SOURCES = {"start": "#d9d9d9", "pause": "#bdbdbd", "guard": "#D55E00"}


def draw_timeline(trace: EpisodeTrace, path: Path, title: str = "", seconds: float = 6.0) -> Path:
    """Draw the first seconds of an episode.

    Four panels: bars of what was computed above bars of what was played, chunk by chunk in alternating colours (grey
    where the robot waits, red where a guard acted); the age of the observation behind each action; the actions, with
    the borders of chunks as lines; and the jumps of their velocity, coloured at borders.

    Args:
        trace: trace of the episode.
        path: a PNG, SVG or PDF file, whichever the suffix says.
        title: above all.
        seconds: how much of the episode is shown.

    Returns:
        The path.
    """
    figure = Figure(figsize=(11, 6.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(1.1, 1.0, 1.4, 1.0))
    bars, ages, actions, jumps = panels
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    _draw_bars(bars, trace, seconds)
    _draw_ages(ages, trace, seconds)
    _draw_actions(actions, trace, seconds)
    _draw_jumps(jumps, trace, seconds)
    end = min(seconds, trace.ticks[-1].sent_s + 1 / trace.rate_hz)
    jumps.set_xlim(0, end)
    jumps.set_xlabel("time, s", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return save(figure, path)


def _draw_bars(axes: Axes, trace: EpisodeTrace, seconds: float) -> None:
    spans: dict[tuple[int, str, float], list[tuple[float, float]]] = defaultdict(list)
    for inference in trace.inferences:
        if inference.begun_s <= seconds:
            end = inference.begun_s if inference.ended_s is None else inference.ended_s
            spans[1, _COMPUTING[inference.kind], 1.0].append((inference.begun_s, max(end - inference.begun_s, 0.004)))
    order = {number: place for place, number in enumerate(dict.fromkeys(row.inference for row in trace.ticks))}
    for row in trace.ticks:
        if row.sent_s <= seconds:
            guarded = row.source == "guard" or row.inference is None
            color = _SOURCES[row.source] if guarded else _CHUNKS[order[row.inference] % len(_CHUNKS)]
            spans[0, color, 0.55 if row.source == "rest" else 1.0].append((row.sent_s, 1 / trace.rate_hz))
    for (level, color, alpha), parts in spans.items():
        axes.broken_barh(parts, (level - 0.35, 0.7), color=color, alpha=alpha, lw=0)
    axes.set_yticks([0, 1], ["played", "computed"], fontsize=9)
    axes.set_ylim(-0.6, 1.6)
    kinds = dict.fromkeys(inference.kind for inference in trace.inferences)
    waited = dict.fromkeys(row.source for row in trace.ticks if row.source in _SOURCES)
    handles = [Patch(color=_COMPUTING[kind], label=_WORDS[kind]) for kind in kinds]
    handles += [Patch(color=_SOURCES[source], label=source) for source in waited]
    axes.legend(handles=handles, fontsize=8, frameon=False, ncols=6, loc="lower right", bbox_to_anchor=(1.0, 0.98))


def _draw_ages(axes: Axes, trace: EpisodeTrace, seconds: float) -> None:
    rows = [row for row in trace.ticks if row.sent_s <= seconds]
    ages = [np.nan if row.age_s is None else 1e3 * row.age_s for row in rows]
    axes.step([row.sent_s for row in rows], ages, where="post", color="#000000", linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("age of the\nobservation, ms", fontsize=9)


def _draw_actions(axes: Axes, trace: EpisodeTrace, seconds: float) -> None:
    rows = [row for row in trace.ticks if row.sent_s <= seconds]
    times = [row.sent_s for row in rows]
    for values in np.array([row.action for row in rows]).T:
        axes.step(times, values, where="post", linewidth=0.9)
    for before, row in pairwise(rows):
        if row.inference != before.inference:
            axes.axvline(row.sent_s, color="#999999", linewidth=0.6, linestyle=":")
    axes.set_ylabel("actions sent", fontsize=9)


def _draw_jumps(axes: Axes, trace: EpisodeTrace, seconds: float) -> None:
    found = [jump for jump in velocity_jumps(trace) if jump.row.sent_s <= seconds]
    for border, color, label in ((True, "#D55E00", "border of a chunk"), (False, "#999999", "inside")):
        some = [jump for jump in found if bool(jump.border) == border]
        if some:
            axes.vlines(
                [jump.row.sent_s for jump in some], 0, [jump.size for jump in some], color=color, lw=1.6, label=label
            )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("jump of the\nvelocity, 1/s", fontsize=9)
    if found:
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.95))
