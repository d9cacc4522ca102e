"""From a results folder to what is shown of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from rich.console import Console

from specpolicy.control.recording import AccountError, read_account
from specpolicy.control.timeline import draw_timeline
from specpolicy.evaluation.comparison import Contestants
from specpolicy.evaluation.conclusion import write_text
from specpolicy.evaluation.episodes import EpisodeKey
from specpolicy.evaluation.store import read_results

from .cells import Cell
from .rows import CellRow, make_rows
from .table import json_summary, markdown_table, rich_table

_log = logging.getLogger(__name__)
TICKS = "ticks"


def ticks_path(out: Path, cell: Cell, seed: int, repeat: int) -> Path:
    """Where the ticks of an episode are."""
    return out / TICKS / cell.slug / f"{seed}-{repeat}.parquet"


def conclude(
    task: str,
    cells: Sequence[Cell],
    contestants: Contestants,
    wanted: AbstractSet[EpisodeKey],
    out: Path,
    timeline: bool = True,
) -> list[CellRow]:
    """Write table, summary and figures about the ``wanted`` episodes into ``out``, and print the table."""
    from .figure import draw_success

    records = [record for record in read_results(out)[0] if record.key in wanted]
    by_name = {cell.name: cell for cell in cells}
    paths: dict[str, list[Path]] = {name: [] for name in by_name}
    for record in records:
        if not record.crashed:
            paths[record.sampler].append(ticks_path(out, by_name[record.sampler], record.seed, record.repeat))
    exact = {name: bool(sampler.exact) for name, sampler in contestants.samplers.items()}
    rows = make_rows(cells, records, exact, paths)
    seeds = len({record.seed for record in records})
    title = f"{task}, {seeds} seed{'s' if seeds != 1 else ''}"
    console = Console()
    console.print(rich_table(rows, title))
    write_text(out / "table.md", markdown_table(rows))
    write_text(out / "summary.json", json_summary(task, rows))
    draw_success(rows, out / "success_against_latency.png", title)
    if timeline:
        _draw_timelines(cells, paths, out)
    console.print(f"Results in {out}: table.md, summary.json, success_against_latency.png, timelines, episodes, ticks.")
    return rows


def _draw_timelines(cells: Sequence[Cell], paths: dict[str, list[Path]], out: Path) -> None:
    """The first episode of each cell, unless it has been drawn."""
    for cell in cells:
        target = out / "timelines" / f"{cell.slug}.png"
        if target.exists() or not paths[cell.name]:
            continue
        try:
            account = read_account(paths[cell.name][0])
        except AccountError as error:
            _log.warning("no timeline: %s", error)
            continue
        draw_timeline(account, target, f"{cell.name}, seed {account.seed}")
