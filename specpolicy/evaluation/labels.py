"""Direct labels in a plot, placed where they cover neither a point nor one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
_DISTANCES = (7, 10, 15, 23, 33, 45, 60)  # points; from the fourth on, a leader line joins label and point
_LEADER_FROM = 23
_MARKER = 5.5  # points to keep clear around each data point


def place_boxes(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Bbox,
    obstacles: Sequence[Bbox] = (),
    unit: float = 1.0,
) -> list[tuple[Bbox, float]]:
    """A box for each point, near it and clear of all points, obstacles and boxes placed before.

    Nearer places come first; if none is free, the one that overlaps least is taken.

    Args:
        points: display coordinates.
        sizes: width and height of each box.
        frame: boxes should stay inside.
        obstacles: boxes to keep clear of.
        unit: display units in one point (1/72 inch).

    Returns:
        The box, and its distance from the point in points.
    """
    margin = _MARKER * unit
    taken = [*obstacles, *(Bbox.from_extents(x - margin, y - margin, x + margin, y + margin) for x, y in points)]
    placed: list[tuple[Bbox, float]] = []
    for point, size in zip(points, sizes, strict=True):
        box, distance = min(
            _candidates(point, size, unit),
            key=lambda candidate: (
                sum(_overlap(candidate[0], other) for other in taken) + 10 * _outside(candidate[0], frame),
                candidate[1],
            ),
        )
        placed.append((box, distance))
        taken.append(box.padded(unit))
    return placed


def spread(values: Sequence[float], gap: float, low: float) -> list[float]:
    """Positions at least ``gap`` apart and not below ``low``, in the order of ``values`` and close to them."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    placed = [max(values[index], low) for index in order]
    for _ in range(200):
        crowded = False
        for lower in range(len(placed) - 1):
            lacking = gap - (placed[lower + 1] - placed[lower])
            if lacking > 1e-9 * gap:
                crowded = True
                placed[lower] = max(placed[lower] - lacking / 2, low if lower == 0 else placed[lower - 1])
                placed[lower + 1] = max(placed[lower + 1] + lacking / 2, placed[lower] + gap)
        if not crowded:
            break
    result = [0.0] * len(values)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


def label_line_ends(
    axes: Axes, ends: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str], fontsize: float = 9
) -> None:
    """Write each text to the right of ``axes``, level with the end of its line and clear of the other texts.

    Args:
        axes: with final limits, and room to its right.
        ends: last point of each line, data coordinates.
        texts, colors: one for each line.
        fontsize: in points.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    frame = axes.get_window_extent()
    unit = figure.dpi / 72
    display = [axes.transData.transform(end) for end in ends]
    levels = spread([float(y) for _, y in display], 1.35 * fontsize * unit, frame.y0)
    for (x, y), level, text, color in zip(display, levels, texts, colors, strict=True):
        axes.annotate(
            text, xy=(x / unit, y / unit), xytext=(frame.x1 / unit + 10, level / unit), xycoords="figure points",
            textcoords="figure points", ha="left", va="center", fontsize=fontsize, color=color, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 1, "shrinkB": 3, "alpha": 0.7,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colors: Sequence[str],
    obstacles: Sequence[Bbox] = (),
    fontsize: float = 9,
) -> None:
    """Write each text near its point. Limits and scales of ``axes`` must be final.

    Args:
        axes: where to write.
        points: in data coordinates.
        texts, colors: one for each point.
        obstacles: boxes in data coordinates to keep clear of, e.g. error bars.
        fontsize: in points.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unit = figure.dpi / 72
    sizes = []
    for text in texts:
        probe = axes.text(0, 0, text, fontsize=fontsize, transform=None)
        extent = probe.get_window_extent(canvas.get_renderer())
        sizes.append((extent.width, extent.height))
        probe.remove()
    display = [tuple(axes.transData.transform(point)) for point in points]
    blocked = [Bbox(axes.transData.transform(box.get_points())) for box in obstacles]
    boxes = place_boxes(display, sizes, axes.get_window_extent(), blocked, unit)
    for (x, y), (box, distance), text, color in zip(display, boxes, texts, colors, strict=True):
        line = {"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 1, "shrinkB": 3}
        axes.annotate(
            text,
            xy=(x / unit, y / unit),
            xytext=((box.x0 + box.x1) / 2 / unit, (box.y0 + box.y1) / 2 / unit),
            xycoords="figure points",  # not pixels: vector formats are drawn at another resolution
            textcoords="figure points",
            ha="center",
            va="center",
            fontsize=fontsize,
            color=color,
            arrowprops=line if distance >= _LEADER_FROM else None,
            annotation_clip=False,
        )


def _candidates(point: tuple[float, float], size: tuple[float, float], unit: float) -> Iterator[tuple[Bbox, float]]:
    (x, y), (width, height) = point, size
    for distance in _DISTANCES:
        for dx, dy in _DIRECTIONS:
            length = distance * unit / (dx * dx + dy * dy) ** 0.5
            centre_x, centre_y = x + dx * (length + width / 2), y + dy * (length + height / 2)
            corners = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            yield Bbox.from_extents(*corners), float(distance)


def _overlap(first: Bbox, second: Bbox) -> float:
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Bbox, frame: Bbox) -> float:
    return max(box.width * box.height - _overlap(box, frame), 0.0)
