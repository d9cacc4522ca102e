"""The frame that all figures of the page share: small enough for a phone, two beside one another on a desk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..plot import style_axes

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
