"""Averages over tasks: one row for each sampler, in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from specpolicy.evaluation.comparison import Conclusion
from specpolicy.evaluation.statistics import Estimate, mean_of_estimates, sign_flip_test
from specpolicy.evaluation.summary import REFERENCE, SummaryRow, seed_differences
from specpolicy.evaluation.tables import (
    MISSING,
    Cell,
    Column,
    interval_cell,
    markdown,
    markdown_table,
    p_text,
    terminal,
)
from specpolicy.evaluation.verdicts import (
    among_best,
    comparison_text,
    distribution_text,
    holm,
    margin_p_value,
    precision_note,
    seeds_text,
    verdicts,
)
from specpolicy.rollout.episodes import EpisodeResult


@dataclass(frozen=True)
class OverallRow:
    """One sampler over all tasks, each task with the same weight; ``None`` where a task knows nothing of it.

    Attributes:
        sampler: its name.
        exact: whether it samples the policy's own distribution.
        successes: success rate by task.
        success: their mean.
        nfe: sequential network evaluations a chunk, mean over tasks.
        rows: states evaluated a chunk, mean over tasks.
        speed_up: median latency of the reference over this sampler's, geometric mean over tasks.
        difference: success rate minus the reference's on the pairs that both have run, mean over tasks.
        p_value: exact and two-sided, of the sign-flip test over the seeds of all tasks.
        p_corrected: the same, with Holm's correction over the rows.
        margin: loss of success that still counts as non-inferior.
        verdict: ``"non-inferior"``, ``"inferior"`` or ``"undecided"`` at the margin for the mean, corrected likewise.
        best: whether the sampler is in the set that cannot be told from the best over all tasks.
        anytime: whether the difference holds however often it is looked at; it then has no p value and no verdict.
        precision: of the network where it was a reduced one, see :class:`SummaryRow`; of any task.
    """

    sampler: str
    exact: bool | None
    successes: Mapping[str, Estimate | None]
    success: Estimate | None
    nfe: float | None
    rows: float | None
    speed_up: Estimate | None
    difference: Estimate | None
    p_value: float | None
    p_corrected: float | None = None
    margin: float | None = None
    verdict: str | None = None
    best: bool | None = None
    anytime: bool = False
    precision: str | None = None


def summarize_tasks(conclusions: Mapping[str, Conclusion]) -> list[OverallRow]:
    """Average the rows of several tasks.

    Args:
        conclusions: rows and episodes by task.

    Returns:
        One row for each sampler that any task knows, in the tasks' order.
    """
    names = list(dict.fromkeys(row.sampler for each in conclusions.values() for row in each.rows))
    rows = [_row(name, conclusions) for name in names]
    compared = [row for row in rows if row.difference is not None and row.p_value is not None]
    margins = [row.margin for each in conclusions.values() for row in each.rows if row.margin is not None]
    if not compared or not margins:
        return rows
    margin = min(margins)  # that of the strictest task
    differences = [row.difference for row in compared if row.difference is not None]
    found = verdicts(differences, [margin_p_value(each, margin) for each in differences], margin)
    corrected = holm([row.p_value for row in compared if row.p_value is not None])
    judged: dict[str, dict[str, Any]] = {
        row.sampler: {"p_corrected": p_value, "margin": margin, "verdict": verdict}
        for row, p_value, verdict in zip(compared, corrected, found, strict=True)
    }
    episodes = {name: _episodes(conclusions, name) for name in names}
    best = among_best(names, lambda first, second: seed_differences(episodes[first], episodes[second]))
    return [replace(row, best=best[row.sampler], **judged.get(row.sampler, {})) for row in rows]


def _row(name: str, conclusions: Mapping[str, Conclusion]) -> OverallRow:
    rows = {
        task: next((row for row in each.rows if row.sampler == name), SummaryRow(name, None))
        for task, each in conclusions.items()
    }
    anytime = any(row.anytime for row in rows.values())
    return OverallRow(
        sampler=name,
        exact=next((row.exact for row in rows.values() if row.exact is not None), None),
        successes={task: row.success for task, row in rows.items()},
        success=_mean([row.success for row in rows.values()]),
        nfe=_plain_mean([row.nfe for row in rows.values()]),
        rows=_plain_mean([row.rows for row in rows.values()]),
        speed_up=_geometric_mean([row.latency.speed_up if row.latency else None for row in rows.values()]),
        difference=_mean([row.difference for row in rows.values()]),
        p_value=None if name == REFERENCE or anytime else _p_value(conclusions, name),
        anytime=anytime,
        precision=next((row.precision for row in rows.values() if row.precision), None),
    )


def _plain_mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if len(known) == len(numbers) else None


def _mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    known = [estimate for estimate in estimates if estimate is not None]
    return mean_of_estimates(known) if len(known) == len(estimates) else None


def _geometric_mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    mean = _mean([None if estimate is None else Estimate(*np.log(estimate)) for estimate in estimates])
    return None if mean is None else Estimate(*(float(number) for number in np.exp(mean)))


def _p_value(conclusions: Mapping[str, Conclusion], name: str) -> float | None:
    differences = seed_differences(_episodes(conclusions, name), _episodes(conclusions, REFERENCE))
    return sign_flip_test(differences) if differences else None


def _episodes(conclusions: Mapping[str, Conclusion], name: str) -> list[EpisodeResult]:
    return [record for each in conclusions.values() for record in each.records if record.sampler == name]


def _columns(tasks: Sequence[str]) -> list[Column[OverallRow]]:
    def success_on(task: str) -> Callable[[OverallRow], Cell]:
        return lambda row: replace(interval_cell(row.successes[task], ".1f", 100), note="")

    return [
        Column("sampler", lambda row: row.sampler, left=True),
        Column("distribution", lambda row: distribution_text(row.exact, row.precision), left=True),
        *(Column(task, success_on(task), "%") for task in tasks),
        Column("mean", lambda row: interval_cell(row.success, ".1f", 100), "% [95 %]"),
        Column("NFE", lambda row: MISSING if row.nfe is None else f"{row.nfe:.1f}"),
        Column("rows", lambda row: MISSING if row.rows is None else f"{row.rows:.0f}"),
        Column(f"× {REFERENCE}", lambda row: interval_cell(row.speed_up, ".2f"), "[95 %]"),
        Column("Δ points", lambda row: interval_cell(row.difference, "+.1f", 100), "[95 %]"),
        Column("p", lambda row: MISSING if row.p_corrected is None else p_text(row.p_corrected)),
        Column("verdict", lambda row: row.verdict or MISSING, left=True),
        Column("best", lambda row: MISSING if row.best is None else "✓" if row.best else ""),
    ]


def markdown_overall(rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion]) -> str:
    """Render the table as markdown, and every task's own below.

    Args:
        rows: see :func:`summarize_tasks`.
        conclusions: by task.
    """
    table = markdown(_columns(list(conclusions)), rows, _caption(rows, conclusions))
    tasks = (f"## {task}\n\n{markdown_table(each.rows)}" for task, each in conclusions.items())
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


def print_overall(rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion], out: Path) -> None:
    """Print the table on the terminal.

    Args:
        rows: see :func:`summarize_tasks`.
        conclusions: by task.
        out: the folder of the results.
    """
    console = Console()
    console.print(terminal(_columns(list(conclusions)), rows, "all tasks"))
    console.print(f"Results in {out}: table.md and table.json over all tasks, and a folder for each task.")


def _caption(rows: Sequence[OverallRow], conclusions: Mapping[str, Conclusion]) -> str:
    seeds = seeds_text([row for each in conclusions.values() for row in each.rows])
    note = precision_note(row.precision for row in rows)
    return (
        f"{seeds} Every task has the same weight; × is the geometric mean of the ratios of median latencies. "
        f"Intervals combine those of the tasks below. {comparison_text(rows, REFERENCE, 'task and seed')} "
        "NFE: sequential network evaluations a chunk; rows: the states evaluated in them."
        + (f" {note}" if note else "")
    )
