"""Lines along the chain and along the episode, each labelled at its right end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..episodes import EpisodeRecord
from ..labels import label_line_ends
from ..plot import label_rounds, prepare_rounds, rounds_by_tenth
from .acceptance import acceptance_of
from .frame import framed
from .pace import Pace
from .results import TaskResults

_NORMAL_95 = 1.96


def rounds_lines(results: TaskResults) -> Figure | None:
    """Where along the chain rounds begin; see :func:`rounds_by_tenth`."""
    rounds = rounds_by_tenth(results.latency) if results.latency else {}
    if not rounds:
        return None

    def prepare(axes: Axes) -> None:
        prepare_rounds(axes, rounds, results.looks)
        axes.set_ylabel("rounds", fontsize=10)

    def finish(axes: Axes) -> None:
        label_rounds(axes, rounds, results.looks)

    return framed(prepare, finish, beside=[results.looks[name].label + " 00.0" for name in rounds])


def acceptance_lines(results: TaskResults) -> Figure | None:
    """Probability that a drafted step is accepted, along the chain, with 95 % bands."""
    logs = results.latency.samplers if results.latency else {}
    found = {name: acceptance for name, log in logs.items() if (acceptance := acceptance_of(log)) is not None}
    if not found:
        return None
    names = {name: f"{results.looks[name].label} {100 * each.overall:.0f} %" for name, each in found.items()}

    def prepare(axes: Axes) -> None:
        for name, each in found.items():
            look, half = results.looks[name], _NORMAL_95 * np.nan_to_num(each.error)
            low, high = np.clip(each.rate - half, 0, 1), np.clip(each.rate + half, 0, 1)
            axes.fill_between(each.position, 100 * low, 100 * high, color=look.color, alpha=0.15, linewidth=0)
            axes.plot(each.position, 100 * each.rate, look.line, color=look.color, linewidth=1.6)
        axes.set_xlim(0, 100)
        axes.set_ylim(min(50.0, *(100 * float(each.rate.min()) - 5 for each in found.values())), 102)
        axes.set_xlabel("position in the chain, % (0 noise, 100 action)", fontsize=10)
        axes.set_ylabel("drafted step accepted, %", fontsize=10)

    def finish(axes: Axes) -> None:
        ends = [(float(each.position[-1]), 100 * float(each.rate[-1])) for each in found.values()]
        label_line_ends(axes, ends, list(names.values()), [results.looks[name].color for name in found])

    return framed(prepare, finish, beside=list(names.values()))


def steps_lines(results: TaskResults) -> Figure | None:
    """Share of episodes that have succeeded within so many environment steps."""
    return _success_lines(results, lambda record: float(record.steps), "environment steps")


def seconds_lines(results: TaskResults, pace: Pace | None) -> Figure | None:
    """The same against the seconds of a robot that stands still while its policy computes."""
    medians = {row.sampler: row.latency.p50.value / 1e3 for row in results.rows if row.latency and row.latency.p50}
    if pace is None or not medians:
        return None

    def seconds(record: EpisodeRecord) -> float | None:
        if record.sampler not in medians:
            return None
        return record.steps / pace.control_hz + record.chunks * medians[record.sampler]

    return _success_lines(results, seconds, "seconds, waiting for the policy included")


def _success_lines(
    results: TaskResults, length: Callable[[EpisodeRecord], float | None], axis_label: str
) -> Figure | None:
    ended: dict[str, list[float]] = {}
    longest = 0.0
    for record in results.records:
        took = length(record)
        if took is not None:
            ended.setdefault(record.sampler, [])
            longest = max(longest, took)
            if record.success:
                ended[record.sampler].append(took)
    rows = [row for row in results.rows if row.sampler in ended]
    if not any(ended.values()):
        return None

    def prepare(axes: Axes) -> None:
        for row in rows:
            look = results.looks[row.sampler]
            x = [0.0, *sorted(ended[row.sampler]), longest]
            y = 100 * np.append(np.arange(len(x) - 1), len(x) - 2) / row.episodes
            axes.step(x, y, where="post", color=look.color, linestyle=look.line, linewidth=1.5)
        axes.set_xlim(0, longest)
        axes.set_ylim(0, 101)
        axes.set_xlabel(axis_label, fontsize=10)
        axes.set_ylabel("succeeded so far, %", fontsize=10)

    def finish(axes: Axes) -> None:
        ends = [(longest, 100 * len(ended[row.sampler]) / row.episodes) for row in rows]
        looks = [results.looks[row.sampler] for row in rows]
        label_line_ends(axes, ends, [look.label for look in looks], [look.color for look in looks])

    return framed(prepare, finish, beside=[results.looks[row.sampler].label for row in rows])
