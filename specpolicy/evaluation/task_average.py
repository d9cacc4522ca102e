"""All tasks in one table: a row for each sampler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from specpolicy.evaluation.comparison import Conclusion
from specpolicy.evaluation.statistics import Estimate, mean_of_estimates, sign_flip_test
from specpolicy.evaluation.summary import SummaryRow, paired_differences
from specpolicy.evaluation.tables import MISSING, markdown_table


@dataclass(frozen=True)
class OverallRow:
    """One sampler over all tasks, each task with the same weight; ``None`` where a task knows nothing of it.

    Attributes:
        sampler: its name.
        exact: whether it samples the policy's own law.
        successes: success rate by task.
        success: their mean.
        passes: sequential network passes a chunk, mean over tasks.
        speed_up: median latency of the reference over this sampler's, geometric mean over tasks.
        difference: success rate minus the reference's on the pairs that both have run, mean over tasks.
        p_value: exact and two-sided, of the sign-flip test over the seeds of all tasks.
    """

    sampler: str
    exact: bool | None
    successes: Mapping[str, Estimate | None]
    success: Estimate | None
    passes: float | None
    speed_up: Estimate | None
    difference: Estimate | None
    p_value: float | None


def summarize_tasks(conclusions: Mapping[str, Conclusion], reference: str = "ddpm") -> list[OverallRow]:
    """One row for each sampler that any task knows, in the tasks' order."""
    names = list(dict.fromkeys(row.sampler for each in conclusions.values() for row in each.rows))
    return [_row(name, conclusions, reference) for name in names]


def _row(name: str, conclusions: Mapping[str, Conclusion], reference: str) -> OverallRow:
    rows = {
        task: next((row for row in each.rows if row.sampler == name), SummaryRow(name, None))
        for task, each in conclusions.items()
    }
    passes = [row.passes for row in rows.values() if row.passes is not None]
    return OverallRow(
        sampler=name,
        exact=next((row.exact for row in rows.values() if row.exact is not None), None),
        successes={task: row.success for task, row in rows.items()},
        success=_mean([row.success for row in rows.values()]),
        passes=float(np.mean(passes)) if len(passes) == len(rows) else None,
        speed_up=_geometric_mean([row.latency.speed_up if row.latency else None for row in rows.values()]),
        difference=_mean([row.difference for row in rows.values()]),
        p_value=None if name == reference else _p_value(conclusions, name, reference),
    )


def _mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    known = [estimate for estimate in estimates if estimate is not None]
    return mean_of_estimates(known) if len(known) == len(estimates) else None


def _geometric_mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    mean = _mean([None if estimate is None else Estimate(*np.log(estimate)) for estimate in estimates])
    return None if mean is None else Estimate(*(float(number) for number in np.exp(mean)))


def _p_value(conclusions: Mapping[str, Conclusion], name: str, reference: str) -> float | None:
    differences: list[int] = []
    for each in conclusions.values():
        mine, theirs = ([record for record in each.records if record.sampler == who] for who in (name, reference))
        differences += [sum(repeats) for repeats in paired_differences(mine, theirs).values()]
    return sign_flip_test(differences) if differences else None


def markdown_overall(rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion], reference: str = "ddpm") -> str:
    """The table as markdown, and every task's own below."""
    head = _head(conclusions, reference)
    lines = [head, ["---" if index < 2 else "---:" for index in range(len(head))], *map(_cells, rows)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    tasks = (f"## {task}\n\n{markdown_table(each.rows, reference)}" for task, each in conclusions.items())
    return "\n".join([f"{table}\n\n{_caption(reference)}\n", *tasks])


def json_overall(rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion]) -> str:
    """Every number: ``{"overall": rows over all tasks, "tasks": {task: its rows}}``."""
    tasks = {task: [asdict(row) for row in each.rows] for task, each in conclusions.items()}
    content = {"overall": [asdict(row) for row in rows], "tasks": tasks}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def print_overall(
    rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion], out: Path, reference: str = "ddpm"
) -> None:
    """The table on the terminal."""
    table = Table(title="all tasks", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False, pad_edge=False)
    for index, name in enumerate(_head(conclusions, reference)):
        table.add_column(name, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*_cells(row))
    console = Console()
    console.print(table)
    console.print(f"Results in {out}: table.md and table.json over all tasks, and a folder for each task.")


def _head(conclusions: Mapping[str, Conclusion], reference: str) -> list[str]:
    names = ["sampler", "law", *(f"{task}, %" for task in conclusions)]
    return [*names, "mean, % [95 %]", "passes", f"× {reference} [95 %]", "Δ points [95 %]", "p"]


def _cells(row: OverallRow) -> list[str]:
    return [
        row.sampler,
        {True: "exact", False: "approx.", None: MISSING}[row.exact],
        *(MISSING if rate is None else f"{100 * rate.value:.1f}" for rate in row.successes.values()),
        _interval(row.success, ".1f", 100),
        MISSING if row.passes is None else f"{row.passes:.1f}",
        _interval(row.speed_up, ".2f"),
        _interval(row.difference, "+.1f", 100),
        MISSING if row.p_value is None else f"{row.p_value:.2f}" if row.p_value >= 0.095 else f"{row.p_value:.1g}",
    ]


def _interval(estimate: Estimate | None, form: str, scale: float = 1) -> str:
    if estimate is None:
        return MISSING
    value, low, high = (f"{scale * number:{form}}" for number in estimate)
    return f"{value} [{low}, {high}]"


def _caption(reference: str) -> str:
    return (
        "Every task has the same weight; × is the geometric mean of the ratios of median latencies. Intervals combine "
        f"those of the tasks below. Δ success and p (exact, paired by task and seed) against {reference}, not "
        "corrected for the number of rows."
    )
