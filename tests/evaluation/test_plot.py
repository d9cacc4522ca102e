"""The figures of a summary."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from specpolicy.control.latency_log import CallLog, LatencyRun
from specpolicy.control.metrics import measure
from specpolicy.evaluation.plots import MARKERS, NothingToPlot, figure_of, plot_summary, rounds_by_tenth, styles_of
from specpolicy.evaluation.statistics import Estimate
from specpolicy.evaluation.summary import LatencySummary, LoopSummary, SummaryRow


def row(name: str, milliseconds: float, success: float, exact: bool = True) -> SummaryRow:
    around = Estimate(milliseconds, 0.98 * milliseconds, 1.02 * milliseconds)
    latency = LatencySummary(200, around, around, around, None)
    interval = Estimate(success, success - 0.05, min(success + 0.05, 1))
    return SummaryRow(name, exact, 100, 80, success=interval, nfe=10, nfe_error=0.5, latency=latency)


ROWS = [row("ddpm", 600, 0.85), row("free", 100, 0.85), row("anchored", 99, 0.85), row("ddim", 30, 0.7, False)]
ROUNDS = [[[0, 3], [4, 40], [45, 54]], [[0, 1], [2, 97]]]
RUN = LatencyRun({"free": CallLog(True, [1, 1], [3, 2], [9, 9], ROUNDS)}, "cpu", 1, 0, 1)


def test_png_and_svg_are_written(tmp_path: Path) -> None:
    picture = plot_summary(ROWS, tmp_path / "deep" / "summary.png", RUN, title="Reach")
    with Image.open(picture) as image:
        assert image.width > 1200
        assert np.asarray(image.convert("L")).std() > 10
    svg = plot_summary(ROWS, tmp_path / "summary.svg").read_text()
    assert svg.startswith("<?xml")


def test_every_sampler_is_in_the_legend_in_its_own_colour_and_marker() -> None:
    rows = [*ROWS, row("block", 101, 0.86), row("linear", 98, 0.84), row("$odd_name$", 103, 0.83)]
    figure = figure_of(rows, title="$odd$")
    figure.canvas.draw()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["ddpm", "free", "anchored", "ddim (approx.)", "block", "linear", r"\$odd_name\$"]
    styles = styles_of(rows)
    assert len({(style.color, style.marker) for style in styles.values()}) == len(rows)
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_controllers_of_one_executor_are_joined_and_lockstep_is_a_level_line() -> None:
    def controller(executor: str, ms: float, success: float, waits: bool = False) -> SummaryRow:
        metrics = measure([])
        loop = LoopSummary(executor, f"{ms:g} ms", {"ms": ms}, ms, waits, True, metrics)
        return replace(row("free", 100, success), latency=None, loop=loop)

    rows = [controller("lockstep", 0, 0.9, True), *(controller("async", ms, 0.8 - ms / 1e3) for ms in (0, 200, 400))]
    axes = figure_of(rows).axes[0]
    assert axes.get_xscale() == "symlog" and len(figure_of(rows).axes) == 1
    (joined,) = (line for line in axes.lines if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(joined.get_ydata(), [80, 60, 40])
    np.testing.assert_allclose(joined.get_xdata(), [0, 200, 400], rtol=0.02)
    assert any(np.allclose(line.get_ydata(), 90) and line.get_label() == "lockstep" for line in axes.lines)


def test_points_are_where_the_numbers_say_and_hollow_where_approximate() -> None:
    axes = figure_of(ROWS).axes[0]
    faces: dict[tuple[float, float], Any] = {}
    for line in axes.lines:
        if line.get_marker() in MARKERS:
            x, y = np.asarray(line.get_xydata())[0]
            faces[float(x), float(y)] = line.get_markerfacecolor()
    assert set(faces) == {(600, 85), (100, 85), (99, 85), (30, 70)}
    assert faces[30, 70] == "white"
    assert "white" not in (faces[600, 85], faces[100, 85])
    assert axes.get_xscale() == "log"


def test_rounds_are_counted_where_they_begin() -> None:
    spent = rounds_by_tenth(RUN)["free"]
    np.testing.assert_allclose(spent, [2, 0, 0, 0, 0.5, 0, 0, 0, 0, 0])
    assert len(figure_of(ROWS, RUN).axes) == 2


def test_missing_parts_leave_panels_out() -> None:
    assert len(figure_of([replace(each, nfe=None) for each in ROWS]).axes) == 1
    assert len(figure_of([replace(each, latency=None) for each in ROWS]).axes) == 1
    with pytest.raises(NothingToPlot, match="run episodes or time calls"):
        figure_of([])


def test_plotting_leaves_pyplot_alone() -> None:
    code = "import sys, specpolicy.evaluation.video, specpolicy.evaluation.plots as plot; plot.Figure()"
    code += "; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
