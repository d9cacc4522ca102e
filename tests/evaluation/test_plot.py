"""The picture of a study."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from specpolicy.evaluation.labels import place_boxes, spread
from specpolicy.evaluation.latency import CallLog, LatencyRun
from specpolicy.evaluation.plots import NothingToPlot, figure_of, plot_summary, rounds_by_tenth
from specpolicy.evaluation.statistics import Estimate
from specpolicy.evaluation.summary import LatencySummary, SummaryRow


def row(name: str, milliseconds: float, success: float, exact: bool = True) -> SummaryRow:
    around = Estimate(milliseconds, 0.98 * milliseconds, 1.02 * milliseconds)
    latency = LatencySummary(200, around, around, around, None)
    interval = Estimate(success, success - 0.05, min(success + 0.05, 1))
    return SummaryRow(name, exact, 100, 80, success=interval, passes=10, passes_error=0.5, latency=latency)


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


def test_labels_stay_beside_their_points_at_every_resolution() -> None:
    figure = figure_of(ROWS)
    for dpi in (72, 300):
        figure.dpi = dpi
        figure.canvas.draw()
        axes = figure.axes[0]
        for label, point in zip(axes.texts, [(600, 85), (100, 85), (99, 85), (30, 70)], strict=True):
            box, (x, y) = Text.get_window_extent(label), axes.transData.transform(point)
            away = max(box.x0 - x, x - box.x1, box.y0 - y, y - box.y1, 0)
            assert away < 60 * dpi / 72, (label.get_text(), dpi)


def test_points_are_where_the_numbers_say_and_hollow_where_approximate() -> None:
    axes = figure_of(ROWS).axes[0]
    faces: dict[tuple[float, float], Any] = {}
    for line in axes.lines:
        if line.get_marker() == "o":
            x, y = np.asarray(line.get_xydata())[0]
            faces[float(x), float(y)] = line.get_markerfacecolor()
    assert set(faces) == {(600, 85), (100, 85), (99, 85), (30, 70)}
    assert faces[30, 70] == "white"
    assert "white" not in (faces[600, 85], faces[100, 85])
    assert axes.get_xscale() == "log"


def test_labels_do_not_overlap() -> None:
    figure = figure_of([*ROWS, row("block", 101, 0.86), row("linear", 98, 0.84), row("frozen", 103, 0.83)])
    figure.canvas.draw()  # sets the labels down where their coordinates say
    axes = figure.axes[0]
    extents = [Text.get_window_extent(label) for label in axes.texts]  # of the text, without its leader line
    assert len(extents) == 7
    for index, first in enumerate(extents):
        assert not any(first.overlaps(second) for second in extents[index + 1 :])


def test_rounds_are_counted_where_they_begin() -> None:
    spent = rounds_by_tenth(RUN)["free"]
    np.testing.assert_allclose(spent, [2, 0, 0, 0, 0.5, 0, 0, 0, 0, 0])
    assert len(figure_of(ROWS, RUN).axes) == 2


def test_missing_parts_leave_panels_out() -> None:
    assert len(figure_of([replace(each, passes=None) for each in ROWS]).axes) == 1
    assert len(figure_of([replace(each, latency=None) for each in ROWS]).axes) == 1
    with pytest.raises(NothingToPlot, match="run episodes or time calls"):
        figure_of([])


def test_crowded_boxes_are_placed_apart() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.uniform(180, 260, (9, 2))]
    boxes = [box for box, _ in place_boxes(points, [(60, 12)] * 9, Bbox.from_extents(0, 0, 500, 500))]
    assert not any(first.overlaps(second) for i, first in enumerate(boxes) for second in boxes[i + 1 :])
    assert not any(box.contains(x, y) for box in boxes for x, y in points)


def test_spread_keeps_order_and_distance() -> None:
    placed = spread([5.0, 5.1, 0.0, 5.05, 40.0], gap=3, low=1)
    assert np.all(np.diff(sorted(placed)) >= 3 - 1e-6)
    assert np.argsort(placed).tolist() == [2, 0, 3, 1, 4]
    assert min(placed) >= 1
    assert placed[4] == 40


def test_plotting_leaves_pyplot_alone() -> None:
    code = "import sys, specpolicy.evaluation.video, specpolicy.evaluation.plots as plot; plot.Figure()"
    code += "; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
