"""From a results folder's episodes to what is shown of them: latency, table, plot, video."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from specpolicy.atomic import atomic_path

from .comparison import Comparison, Contestants
from .episodes import EpisodeRecord
from .latency import LatencyRun, measure_latency
from .observations import read_observations
from .provenance import collect_provenance
from .store import read_results
from .summary import SummaryRow, summarize
from .table import json_table, markdown_table, rich_table

_log = logging.getLogger(__name__)
LATENCY = "latency.json"


@dataclass(frozen=True)
class Conclusion:
    """What came of a comparison: its episodes, and a row for each sampler."""

    records: list[EpisodeRecord]
    rows: list[SummaryRow]


def conclude(comparison: Comparison, folder: Path) -> Conclusion:
    """Measure latency unless that has been done, then write and print the table and write plot and video."""
    contestants = comparison.contestants()
    episodes = comparison.episodes()
    records = [record for record in read_results(folder)[0] if record.key in episodes]
    latency = _latency(comparison, contestants, folder)
    exact = {name: bool(sampler.exact) for name, sampler in contestants.samplers.items()}
    rows = summarize(records, latency, exact)
    _show(comparison, rows, latency, folder)
    _film(comparison, contestants, rows, folder)
    return Conclusion(records, rows)


def write_text(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _latency(comparison: Comparison, contestants: Contestants, folder: Path) -> LatencyRun | None:
    """The measurement in ``folder`` if it has all these samplers, else a new one on observations of these episodes."""
    path, samplers = folder / LATENCY, contestants.samplers
    old = LatencyRun.read(path) if path.exists() else None
    if old is not None:
        logs = {name: log for name, log in old.samplers.items() if name in samplers}
        enough = len(logs) == len(samplers) and all(
            len(log.nanoseconds) >= comparison.latency_calls for log in logs.values()
        )
        if enough or not comparison.latency_calls:
            return replace(old, samplers=logs)
    if not comparison.latency_calls:
        return None
    observations = read_observations(folder)
    if not observations:
        warnings.warn(f"{folder} holds no observations to measure latency on", stacklevel=2)
        return None
    policy = contestants.policy
    run = measure_latency(
        policy,
        samplers,
        observations,
        calls=comparison.latency_calls,
        threads=comparison.latency_threads,
        provenance=collect_provenance(comparison.checkpoint, device=getattr(policy, "device", "cpu")),
    )
    run.write(path)
    return run


def _show(comparison: Comparison, rows: list[SummaryRow], latency: LatencyRun | None, folder: Path) -> None:
    from .plot import NothingToPlot, plot_summary

    title = f"{comparison.task}, {len(comparison.seeds)} seeds"
    console = Console()
    console.print(rich_table(rows, title))
    write_text(folder / "table.md", markdown_table(rows))
    write_text(folder / "table.json", json_table(rows))
    try:
        plot_summary(rows, folder / "latency_against_success.png", latency, title)
    except NothingToPlot as error:
        _log.info("no plot: %s", error)
    console.print(f"Results in {folder}: table.md, table.json, latency_against_success.png, episodes and provenance.")


def _film(comparison: Comparison, contestants: Contestants, rows: list[SummaryRow], folder: Path) -> None:
    """One episode side by side; each robot stands still for as long as its sampler thinks."""
    policy, samplers = contestants
    cast = {name: samplers[name] for name in comparison.video if name in samplers}
    if not cast:
        return
    from .video import film

    medians = {row.sampler: row.latency.p50.value / 1e3 for row in rows if row.latency and row.latency.p50}
    make_env = comparison.make_env
    clip = film(
        policy,
        cast,
        replace(make_env, kwargs={**make_env.kwargs, "render_mode": "rgb_array"}),
        folder / "rollout.mp4",
        seed=comparison.seeds[0],
        pauses={name: medians.get(name) for name in cast},
        control_hz=comparison.control_hz,
    )
    if clip is not None:
        _log.info("video: %s", clip)
