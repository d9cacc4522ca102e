"""The figures of one task. Each is left out where the results have nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plot import label_success, prepare_success
from .curves import acceptance_lines, rounds_lines, seconds_lines, steps_lines
from .frame import framed
from .pace import Pace
from .results import TaskResults
from .ridges import latency_ridges, passes_ridges
from .svg import inline_svg


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        title: what it answers.
        svg: an ``<svg>`` element.
        caption: how to read it.
    """

    title: str
    svg: str
    caption: str


def pictures_of(results: TaskResults, pace: Pace | None, prefix: str) -> list[Picture]:
    """All figures that the results have something for, in the order of reading.

    Args:
        results: of one task.
        pace: of its robot, if known.
        prefix: makes ids unique on the page.
    """
    drawn = []
    for key, title, caption, draw in _plan(results, pace):
        figure = draw()
        if figure is not None:
            label = f"{results.task}: {title}. {caption}"
            drawn.append(Picture(title, inline_svg(figure, label, prefix + key), caption))
    return drawn


def _plan(results: TaskResults, pace: Pace | None) -> Iterator[tuple[str, str, str, Callable[[], Figure | None]]]:
    yield (
        "tradeoff", "Latency against success",
        "Up and to the left is better. Bars are 95 % intervals on both axes; hollow points are approximate samplers.",
        lambda: tradeoff(results),
    )  # fmt: skip
    yield (
        "latency", "How long a chunk takes",
        "Density of the timed calls, one tick a call below it; the bars stand at the median (thick) and p95 (thin). "
        "Approximate samplers are dashed and not filled.",
        lambda: latency_ridges(results, pace),
    )  # fmt: skip
    yield (
        "acceptance", "How often a drafted step is accepted",
        "Of the drafted steps that verification reached, in each part of the chain; bands are 95 % intervals between "
        "calls. The number beside a name is its share over the whole chain.",
        lambda: acceptance_lines(results),
    )  # fmt: skip
    yield (
        "rounds", "Where the rounds begin",
        "Rounds of a chunk by the tenth of the chain they begin in. The number beside a name is their mean total.",
        lambda: rounds_lines(results),
    )  # fmt: skip
    yield (
        "passes", "Passes of a chunk",
        "How many chunks took how many network passes one after another; each row is scaled to its highest bar.",
        lambda: passes_ridges(results),
    )  # fmt: skip
    yield (
        "steps", "Steps to success",
        "Share of all episodes that have succeeded; crashed and failed ones never do. Approximate samplers are dashed.",
        lambda: steps_lines(results),
    )  # fmt: skip
    yield (
        "seconds", "Seconds to success on the robot",
        "The same episodes on the clock of a robot that stands still while its policy computes: "
        + (f"steps at {pace.control_hz:g} Hz and each chunk at its sampler's median latency." if pace else ""),
        lambda: seconds_lines(results, pace),
    )  # fmt: skip


def tradeoff(results: TaskResults) -> Figure | None:
    """Latency against success, intervals on both axes."""
    rows = [row for row in results.rows if row.success and row.latency and row.latency.p50]
    if not rows:
        return None

    def prepare(axes: Axes) -> None:
        prepare_success(axes, rows, results.looks)
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.4, high * 1.4)  # room for names beside the outermost points of a narrow figure

    def finish(axes: Axes) -> None:
        label_success(axes, rows, results.looks)

    return framed(prepare, finish, height=3.7)
