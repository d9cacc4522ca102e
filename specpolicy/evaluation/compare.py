"""The whole comparison of samplers on one task: episodes, latency, table, plot and video, in one results folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from specpolicy.policies import DiffusionPolicy

from .atomic import atomic_path
from .latency import LatencyRun, measure_latency
from .player import MakeEnv
from .pool import EnvPool
from .protocols import Sampler
from .provenance import checkpoint_digest, collect_provenance
from .store import ResultStore
from .study import run_study
from .summary import SummaryRow, summarize
from .table import json_table, markdown_table, rich_table
from .tap import ObservationTap

_log = logging.getLogger(__name__)
LATENCY, OBSERVATIONS, KEPT_OBSERVATIONS = "latency.json", "observations.npz", 64


@dataclass(frozen=True)
class CompareSettings:
    """What to compare, and how much.

    Attributes:
        task: its name.
        checkpoint: where the policy came from, for the record.
        seeds: of the initial states.
        recipes: configuration of each sampler, for the record; a folder refuses a sampler whose recipe has changed.
        repeats: episodes for each seed.
        num_envs: environments that share a network pass.
        threads: torch's threads; None leaves them as they are.
        latency_calls: timed calls of each sampler at batch 1; 0 for none.
        control_hz: control rate of the environment, for the video's clock.
        video: samplers to film side by side, as far as they take part.
    """

    task: str
    checkpoint: str
    seeds: Sequence[int]
    recipes: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    num_envs: int = 8
    threads: int | None = None
    latency_calls: int = 40
    control_hz: float = 20.0
    video: tuple[str, ...] = ()


def compare(
    policy: DiffusionPolicy, samplers: Mapping[str, Sampler], make_env: MakeEnv, out: Path, settings: CompareSettings
) -> list[SummaryRow]:
    """Run what is missing in ``out``, then print the table and write it beside a plot and a video.

    ``out`` holds the episodes (parquet shards and a manifest), ``latency.json``, ``table.md``, ``table.json``,
    ``latency_against_success.png`` and, where rendering works, ``rollout.mp4``. Run it again after any interruption:
    finished episodes are not repeated.

    Raises:
        ConfigurationMismatch: ``out`` holds results of another policy, task or environment.
        EvaluationAborted: nothing but crashes came.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    exact = {name: bool(sampler.exact) for name, sampler in samplers.items()}
    provenance = collect_provenance(settings.checkpoint, settings.seeds, policy.device)
    tap = ObservationTap(policy, limit=KEPT_OBSERVATIONS)
    with (
        ResultStore(
            out,
            configuration={
                "task": settings.task,
                "environment": {"id": make_env.id, **make_env.kwargs},
                "checkpoint": checkpoint_digest(settings.checkpoint),
                "policy": policy.config.to_dict(),
            },
            samplers={
                name: {"exact": exact[name], "recipe": settings.recipes.get(name, repr(sampler))}
                for name, sampler in samplers.items()
            },
            provenance=provenance,
        ) as store,
        EnvPool(make_env, policy.config.observation_horizon, settings.num_envs) as pool,
    ):
        records = run_study(
            tap, samplers, pool, store, task=settings.task, seeds=settings.seeds, repeats=settings.repeats
        )
    latency = _latency(policy, samplers, tap.observations, out, settings, provenance)
    rows = summarize(records, latency, exact)
    _write(rows, latency, out, settings)
    _film(policy, samplers, make_env, rows, out, settings)
    return rows


def _latency(
    policy: DiffusionPolicy,
    samplers: Mapping[str, Sampler],
    seen: list[dict[str, NDArray[Any]]],
    out: Path,
    settings: CompareSettings,
    provenance: Mapping[str, Any],
) -> LatencyRun | None:
    """The measurement in ``out`` if it is of these samplers, else a new one on observations of these episodes."""
    path, kept = out / LATENCY, out / OBSERVATIONS
    if seen:
        with atomic_path(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{key: np.concatenate([each[key] for each in seen]) for key in seen[0]})
    if not settings.latency_calls:
        return LatencyRun.read(path) if path.exists() else None
    if path.exists():
        old = LatencyRun.read(path)
        if set(old.samplers) == set(samplers) and all(
            len(log.nanoseconds) >= settings.latency_calls for log in old.samplers.values()
        ):
            return old
    if not kept.exists():
        warnings.warn("no recorded observations to measure latency on", stacklevel=2)
        return None
    with np.load(kept) as arrays:
        stacked = {key: arrays[key] for key in arrays.files}
    count = len(next(iter(stacked.values())))
    observations = [{key: part[row : row + 1] for key, part in stacked.items()} for row in range(count)]
    run = measure_latency(policy, samplers, observations, calls=settings.latency_calls, provenance=provenance)
    run.write(path)
    return run


def _write(rows: list[SummaryRow], latency: LatencyRun | None, out: Path, settings: CompareSettings) -> None:
    from .plot import NothingToPlot, plot_summary

    title = f"{settings.task}, {len(settings.seeds)} seeds"
    console = Console()
    console.print(rich_table(rows, title))
    for name, text in (("table.md", markdown_table(rows)), ("table.json", json_table(rows))):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    try:
        plot_summary(rows, out / "latency_against_success.png", latency, title)
    except NothingToPlot as error:
        _log.info("no plot: %s", error)
    console.print(f"Results in {out}: table.md, table.json, latency_against_success.png, episodes and provenance.")


def _film(
    policy: DiffusionPolicy,
    samplers: Mapping[str, Sampler],
    make_env: MakeEnv,
    rows: list[SummaryRow],
    out: Path,
    settings: CompareSettings,
) -> None:
    """One episode side by side; each robot stands still for as long as its sampler thinks."""
    cast = {name: samplers[name] for name in settings.video if name in samplers}
    if not cast:
        return
    from .video import film

    medians = {row.sampler: row.latency.p50.value / 1e3 for row in rows if row.latency and row.latency.p50}
    pauses = {name: medians.get(name) for name in cast}
    rendered = replace(make_env, kwargs={**make_env.kwargs, "render_mode": "rgb_array"})
    clip = film(
        policy,
        cast,
        rendered,
        out / "rollout.mp4",
        seed=settings.seeds[0],
        pauses=pauses,
        control_hz=settings.control_hz,
    )
    if clip is not None:
        _log.info("video: %s", clip)
