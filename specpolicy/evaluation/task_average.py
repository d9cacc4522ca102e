"""Averages over tasks: one row for each sampler, in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from specpolicy.evaluation.comparison import Conclusion
from specpolicy.evaluation.statistics import Estimate, mean_of_estimates, sign_flip_test
from specpolicy.evaluation.summary import SummaryRow, paired_differences
from specpolicy.evaluation.tables import (
    EXACT,
    MISSING,
    Cell,
    Column,
    interval_cell,
    markdown,
    markdown_table,
    p_text,
    terminal,
)


@dataclass(frozen=True)
class OverallRow:
    """One sampler over all tasks, each task with the same weight; ``None`` where a task knows nothing of it.

    Attributes:
        sampler: its name.
        exact: whether it samples the policy's own distribution.
        successes: success rate by task.
        success: their mean.
        nfe: sequential network evaluations a chunk, mean over tasks.
        speed_up: median latency of the reference over this sampler's, geometric mean over tasks.
        difference: success rate minus the reference's on the pairs that both have run, mean over tasks.
        p_value: exact and two-sided, of the sign-flip test over the seeds of all tasks.
    """

    sampler: str
    exact: bool | None
    successes: Mapping[str, Estimate | None]
    success: Estimate | None
    nfe: float | None
    speed_up: Estimate | None
    difference: Estimate | None
    p_value: float | None


def summarize_tasks(conclusions: Mapping[str, Conclusion], reference: str = "ddpm") -> list[OverallRow]:
    """Average the rows of several tasks.

    Args:
        conclusions: rows and episodes by task.
        reference: the sampler that others are compared with.

    Returns:
        One row for each sampler that any task knows, in the tasks' order.
    """
    names = list(dict.fromkeys(row.sampler for each in conclusions.values() for row in each.rows))
    return [_row(name, conclusions, reference) for name in names]


def _row(name: str, conclusions: Mapping[str, Conclusion], reference: str) -> OverallRow:
    rows = {
        task: next((row for row in each.rows if row.sampler == name), SummaryRow(name, None))
        for task, each in conclusions.items()
    }
    nfe = [row.nfe for row in rows.values() if row.nfe is not None]
    return OverallRow(
        sampler=name,
        exact=next((row.exact for row in rows.values() if row.exact is not None), None),
        successes={task: row.success for task, row in rows.items()},
        success=_mean([row.success for row in rows.values()]),
        nfe=float(np.mean(nfe)) if len(nfe) == len(rows) else None,
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


def _columns(tasks: Sequence[str], reference: str) -> list[Column[OverallRow]]:
    def success_on(task: str) -> Callable[[OverallRow], Cell]:
        return lambda row: replace(interval_cell(row.successes[task], ".1f", 100), note="")

    return [
        Column("sampler", lambda row: row.sampler, left=True),
        Column("distribution", lambda row: EXACT[row.exact], left=True),
        *(Column(task, success_on(task), "%") for task in tasks),
        Column("mean", lambda row: interval_cell(row.success, ".1f", 100), "% [95 %]"),
        Column("NFE", lambda row: MISSING if row.nfe is None else f"{row.nfe:.1f}"),
        Column(f"× {reference}", lambda row: interval_cell(row.speed_up, ".2f"), "[95 %]"),
        Column("Δ points", lambda row: interval_cell(row.difference, "+.1f", 100), "[95 %]"),
        Column("p", lambda row: MISSING if row.p_value is None else p_text(row.p_value)),
    ]


def markdown_overall(rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion], reference: str = "ddpm") -> str:
    """Render the table as markdown, and every task's own below.

    Args:
        rows: see :func:`summarize_tasks`.
        conclusions: by task.
        reference: the sampler that others are compared with.
    """
    table = markdown(_columns(list(conclusions), reference), rows, _caption(reference))
    tasks = (f"## {task}\n\n{markdown_table(each.rows, reference)}" for task, each in conclusions.items())
    return "\n".join([table, *tasks])


def json_overall(rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion]) -> str:
    """Render every number as JSON: ``{"overall": rows over all tasks, "tasks": {task: its rows}}``.

    Args:
        rows: see :func:`summarize_tasks`.
        conclusions: by task.
    """
    tasks = {task: [asdict(row) for row in each.rows] for task, each in conclusions.items()}
    content = {"overall": [asdict(row) for row in rows], "tasks": tasks}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def print_overall(
    rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion], out: Path, reference: str = "ddpm"
) -> None:
    """Print the table on the terminal.

    Args:
        rows: see :func:`summarize_tasks`.
        conclusions: by task.
        out: the folder of the results.
        reference: the sampler that others are compared with.
    """
    console = Console()
    console.print(terminal(_columns(list(conclusions), reference), rows, "all tasks"))
    console.print(f"Results in {out}: table.md and table.json over all tasks, and a folder for each task.")


def _caption(reference: str) -> str:
    return (
        "Every task has the same weight; × is the geometric mean of the ratios of median latencies. Intervals combine "
        f"those of the tasks below. Δ success and p (exact, paired by task and seed) against {reference}, not "
        "corrected for the number of rows."
    )
