"""What does latency cost on a robot that does not wait? Table and figure of what ``make reality`` has run.

    python benchmarks/bench_latency_injection.py

Injected latencies show how each task falls with the time that an inference is said to take, whoever takes it; recorded
ones put the samplers where this machine's measurements place them. ``predicted`` is the same as ``injected`` where the
policy is asked about the observation that a forward model predicts for the handover, ``delay`` for policies that were
trained to continue the actions under way (docs/control.md). Reads the episodes of
``benchmarks/results/reality/{injected,predicted,delay,recorded}/<task>`` and writes table and figure beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from side_by_side import RESULTS

from specpolicy.evaluation.plots import COLORS, PAPER, save, style_axes
from specpolicy.evaluation.results import read_results
from specpolicy.evaluation.statistics import clopper_pearson
from specpolicy.utils.files import atomic_path

REALITY = RESULTS / "reality"
TASKS = ("square", "transport", "tool_hang")
EXECUTORS = ("asynchronous", "blocking", "predrafting")
TICK_MS = 50.0
FEWEST = 50
KINDS = {"injected": "", "predicted": ", predicted observation", "delay": ", delay-conditioned"}
"""What is injected, and in what its rows differ from the first."""


@dataclass(frozen=True)
class Cell:
    """Episodes of one executor, sampler and latency on one task."""

    task: str
    kind: str
    executor: str
    sampler: str
    latency_ms: float
    successes: int
    episodes: int
    nfe: float  # of a chunk that was played
    rows: float  # for each of these, the rows of chunks that came too late included

    @property
    def percent(self) -> tuple[float, float, float]:
        """Success with Clopper and Pearson's interval."""
        estimate = clopper_pearson(self.successes, self.episodes)
        return 100 * estimate.value, 100 * estimate.low, 100 * estimate.high

    @property
    def shown(self) -> str:
        """For a table."""
        return f"{self.successes}/{self.episodes}"


def cells(kind: str, task: str) -> Iterator[Cell]:
    """Of one results folder, counted from its episodes."""
    folder = REALITY / kind / task
    if not folder.exists():
        return
    records, manifest = read_results(folder)
    for name, entry in manifest.samplers.items():
        mine = [record for record in records if record.sampler == name]
        if len(mine) >= FEWEST:  # a cell that has only begun says nothing
            injected = entry["injected"] if "injected" in entry else entry["charged"]  # its older name
            latency = injected["median_ms" if kind == "recorded" else "ms"]  # as it was played
            won = sum(bool(record.success) for record in mine)
            executor = entry["executor"]["name"].partition(" (")[0]  # without the predictor's name
            passes = [count for record in mine for count in record.passes]
            chunks = max(1, len(passes))  # none where every episode has crashed
            nfe, rows = sum(passes) / chunks, sum(record.evaluations for record in mine) / chunks
            yield Cell(task, kind, executor, entry["sampler"], latency, won, len(mine), nfe, rows)


def table(found: Sequence[Cell]) -> list[str]:
    """What was injected, then what was recorded, then what a chunk took there."""
    injected = [cell for cell in found if cell.kind in KINDS]
    latencies = sorted({cell.latency_ms for cell in injected})
    lines = [f"| task | while it computes | {' | '.join(f'{each:g}' for each in latencies)} |"]
    lines.append(f"| --- | --- | {' | '.join(['---:'] * len(latencies))} |")
    means = {"asynchronous": "plays on (asynchronous)", "blocking": "stands still (blocking)"}
    for task in TASKS:
        for executor in EXECUTORS:
            for kind, differs in KINDS.items():
                mine = [cell for cell in injected if (cell.task, cell.executor, cell.kind) == (task, executor, kind)]
                row = {cell.latency_ms: cell.shown for cell in mine}
                if row:
                    shown = " | ".join(row.get(each, "–") for each in latencies)
                    lines.append(f"| {task} | {means.get(executor, executor)}{differs} | {shown} |")
    recorded = [cell for cell in found if cell.kind == "recorded"]
    samplers = list(dict.fromkeys(cell.sampler for cell in recorded))
    lines += [
        "",
        "Successes by injected latency of an inference, ms. With those recorded for each sampler (in ticks of 50 ms):",
        "",
    ]
    lines.append(f"| task | executor | {' | '.join(samplers)} |")
    lines.append(f"| --- | --- | {' | '.join(['---:'] * len(samplers))} |")
    for task in TASKS:
        for executor in EXECUTORS:
            mine = {cell.sampler: cell for cell in recorded if (cell.task, cell.executor) == (task, executor)}
            if mine:
                texts = (
                    f"{mine[each].shown} ({-(-mine[each].latency_ms // TICK_MS):.0f})" if each in mine else "–"
                    for each in samplers
                )
                lines.append(f"| {task} | {executor} | {' | '.join(texts)} |")
    lines += [
        "",
        "Network evaluations of a chunk in these, playing on, and rows for each chunk that was played: those of chunks "
        "that came too late to play are counted, too.",
        "",
        *_cost(recorded),
    ]
    return lines


def _cost(recorded: Sequence[Cell]) -> list[str]:
    asked = {(cell.task, cell.sampler): cell for cell in recorded if cell.executor == "asynchronous"}
    tasks, samplers = (list(dict.fromkeys(key[place] for key in asked)) for place in (0, 1))
    heads = " | ".join(f"{task}: NFE | rows" for task in tasks)
    lines = [f"| sampler | {heads} |", f"| --- | {' | '.join(['---:'] * (2 * len(tasks)))} |"]
    for sampler in samplers:
        row = [asked.get((task, sampler)) for task in tasks]
        texts = ("– | –" if cell is None else f"{cell.nfe:.1f} | {cell.rows:.0f}" for cell in row)
        lines.append(f"| `{sampler}` | {' | '.join(texts)} |")
    return lines


def draw(found: Sequence[Cell], path: Path) -> None:
    """A panel for each task: lines for injected latencies, diamonds for the samplers at their recorded ones."""
    figure = Figure(figsize=(12.5, 4.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(TASKS), sharey=True)
    for axes, task in zip(panels, TASKS, strict=True):
        style_axes(axes)
        _panel(axes, task, [cell for cell in found if cell.task == task])
    panels[0].set_ylabel("success, %", fontsize=10)
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0].legend(named.values(), named.keys(), fontsize=8, frameon=False, loc="lower left")
    save(figure, path)


def _panel(axes: Axes, task: str, found: Sequence[Cell]) -> None:
    axes.set_xscale("symlog", linthresh=25, linscale=0.35)
    axes.set_xlim(-4, 1100)
    axes.set_ylim(-5, 108)
    curves = [
        ("injected", "asynchronous", 0), ("injected", "blocking", 1), ("predicted", "asynchronous", 3),
        ("delay", "asynchronous", 4),
    ]  # fmt: skip
    for kind, executor, place in curves:
        line = sorted(
            (cell for cell in found if cell.kind == kind and cell.executor == executor),
            key=lambda cell: cell.latency_ms,
        )
        if line:
            values, lows, highs = zip(*(cell.percent for cell in line), strict=True)
            x = [cell.latency_ms for cell in line]
            axes.fill_between(x, lows, highs, color=COLORS[place], alpha=0.12, lw=0)
            words = "plays on while it computes" if executor == "asynchronous" else "stands still while it computes"
            words += KINDS[kind]
            axes.plot(x, values, "o-", color=COLORS[place], ms=4, lw=1.5, label=words)
    points = [cell for cell in found if cell.kind == "recorded" and cell.executor == "asynchronous"]
    for order, cell in enumerate(sorted(points, key=lambda cell: cell.latency_ms)):
        value, low, high = cell.percent
        exact = not cell.sampler.startswith("ddim")
        axes.errorbar(cell.latency_ms, value, [[value - low], [high - value]], color=COLORS[2], lw=1, zorder=3)
        axes.plot(
            cell.latency_ms, value, "D", ms=6, color=COLORS[2], mfc=COLORS[2] if exact else PAPER, zorder=4,
            label="a sampler at its recorded latency, playing on\n(hollow: approximate)" if not order else None,
        )  # fmt: skip
        below = low > 30  # the name stands along its interval, where there is room
        axes.annotate(
            cell.sampler,
            (cell.latency_ms, low if below else high),
            xytext=(0, -3 if below else 3),
            textcoords="offset points",
            rotation=90,
            ha="right" if cell.sampler == "ddim10" else "left" if cell.sampler == "free_block20" else "center",
            va="top" if below else "bottom",
            fontsize=8,
            color=COLORS[2],
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.6},
        )
    axes.xaxis.set_major_locator(FixedLocator([0, 25, 50, 100, 200, 400, 800]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("latency of one inference, ms", fontsize=10)
    axes.set_title(task, fontsize=11, loc="left")


def main() -> None:
    found = [cell for kind in (*KINDS, "recorded") for task in TASKS for cell in cells(kind, task)]
    if not found:
        raise SystemExit(f"nothing in {REALITY}: run make reality first")
    lines = table(found)
    content: list[dict[str, Any]] = [{**vars(cell), "percent": cell.percent} for cell in found]
    for name, text in (("table.md", "\n".join(lines)), ("table.json", json.dumps(content, separators=(",", ":")))):
        with atomic_path(REALITY / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    draw(found, REALITY / "success_against_latency.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
