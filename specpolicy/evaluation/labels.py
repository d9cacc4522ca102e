"""Direct labels in a plot, placed where they cover neither a point nor one another."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_DIRECTIONS = ((1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0))
_DISTANCES = (9, 16, 26, 38, 52, 70)  # points; a leader line is drawn where a label is far from its point
_LEADER_FROM = 26
_ALIGNMENT = {-1: "right", 0: "center", 1: "left"}


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colors: Sequence[str],
    obstacles: Sequence[Bbox] = (),
) -> list[Annotation]:
    """Annotate each point with its text, near it and clear of everything placed so far.

    Limits and scales of ``axes`` must be final. Nearer places are tried first; if none is free, the one that overlaps
    least is taken.

    Args:
        axes: where to write.
        points: in data coordinates.
        texts: one for each point.
        colors: one for each point.
        obstacles: boxes in display coordinates to keep clear of, e.g. error bars.
    """
    canvas = FigureCanvasAgg(axes.figure.get_figure(root=True))  # type: ignore[arg-type]
    renderer = canvas.get_renderer()
    canvas.draw()
    taken = [*obstacles]
    for x, y in (axes.transData.transform(point) for point in points):
        taken.append(Bbox.from_extents(x - 7, y - 7, x + 7, y + 7))
    frame = axes.get_window_extent(renderer)
    labels: list[Annotation] = []
    for point, text, color in zip(points, texts, colors, strict=True):
        best: tuple[float, Annotation, Bbox] | None = None
        for distance in _DISTANCES:
            for dx, dy in _DIRECTIONS:
                label = _annotate(axes, text, point, dx * distance, dy * distance, color, distance >= _LEADER_FROM)
                box = Annotation.get_window_extent(label, renderer) if distance < _LEADER_FROM else _text_box(label, renderer)
                cost = sum(_overlap(box, other) for other in taken) + 10 * _outside(box, frame)
                if best is None or cost < best[0]:
                    if best is not None:
                        best[1].remove()
                    best = cost, label, box
                else:
                    label.remove()
                if best[0] == 0:
                    break
            if best is not None and best[0] == 0:
                break
        assert best is not None
        labels.append(best[1])
        taken.append(best[2].padded(2))
    return labels
