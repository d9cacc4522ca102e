"""Distributions as ridges, one row a sampler: names stand at the left and never collide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..looks import Look
from ..plot import MUTED, log_ticks
from ..summary import NS_PER_MS, SummaryRow
from .frame import framed
from .pace import Pace
from .results import TaskResults

_RISE, _MOST_TICKS = 0.72, 150


def latency_ridges(results: TaskResults, pace: Pace | None) -> Figure | None:
    """Density of the timed calls on a logarithmic axis, each call a tick below it; bars at the median and at p95."""
    logs = results.latency.samplers if results.latency else {}
    rows = [row for row in results.rows if row.sampler in logs and logs[row.sampler].nanoseconds]
    if not rows:
        return None

    def ridge(axes: Axes, base: float, row: SummaryRow, look: Look) -> None:
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

    def ridge(axes: Axes, base: float, row: SummaryRow, look: Look) -> None:
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
    ridge: Callable[[Axes, float, SummaryRow, Look], None],
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


def _density(axes: Axes, base: float, values: NDArray[np.float64], look: Look) -> Callable[[float], float]:
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
