"""Whole comparisons of samplers: episodes, latency, tables, plots and videos, in results folders."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from specpolicy.evaluation.comparison import Comparison, write_results, write_text
from specpolicy.evaluation.launchers.local import Launcher, LocalLauncher
from specpolicy.evaluation.manifest import MANIFEST
from specpolicy.evaluation.results import ObservationKeeper, ResultStore
from specpolicy.evaluation.sealed import open_sealed_seeds
from specpolicy.evaluation.summary import SummaryRow
from specpolicy.evaluation.task_average import (
    OverallRow,
    json_overall,
    markdown_overall,
    print_overall,
    summarize_tasks,
)
from specpolicy.policies.checkpoint import read_seen_seeds
from specpolicy.rollout.episodes import EVALUATION_SEEDS, Batch, Unit, plan_units
from specpolicy.utils.digests import checkpoint_digest
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

_log = logging.getLogger(__name__)


def compare(comparison: Comparison, out: Path, launcher: Launcher | None = None) -> list[SummaryRow]:
    """Run what is missing in ``out``, then print the table and write it beside a plot and a video.

    ``out`` holds the episodes (parquet shards and a manifest), ``latency.json``, ``table.md``, ``table.json``,
    ``latency_against_success.png`` and, where rendering works, ``rollout.mp4``. Run it again after any interruption:
    finished episodes are not repeated.

    Args:
        comparison: what to run.
        out: the results folder.
        launcher: where episodes run; in this process if None.

    Returns:
        A row for each sampler.

    Raises:
        ConfigurationMismatch: ``out`` holds results of another policy, task or environment.
        EvaluationAborted: nothing but crashes came.
        LauncherError: workers cannot be had, or cannot work.
        SealedSeedsError: sealed seeds were opened before, for another checkpoint.
    """
    open_sealed_seeds({comparison.task: comparison}, out)
    run_missing({comparison.task: comparison}, {comparison.task: out}, launcher)
    return write_results(comparison, out).rows


def compare_tasks(
    comparisons: Mapping[str, Comparison], out: Path, launcher: Launcher | None = None
) -> list[OverallRow]:
    """:func:`compare` several tasks, each in the folder ``out/<task>``, and write one table over all into ``out``.

    Nothing is run before every task has shown that it can be: its policy loads and its folder is of this configuration.

    Args:
        comparisons: by task.
        out: the folder above the tasks' own.
        launcher: where episodes run; in this process if None.

    Returns:
        A row for each sampler, averaged over tasks.

    Raises:
        ResultsOfOneTask: ``out`` itself is a results folder.
        ValueError, RuntimeError: as :func:`compare`.
    """
    if (out / MANIFEST).exists():
        raise ResultsOfOneTask(
            f"{out} holds the results of one task; choose a folder above it, in which every task gets its own"
        )
    open_sealed_seeds(comparisons, out)
    folders = {task: out / task for task in comparisons}
    run_missing(comparisons, folders, launcher)
    conclusions = {task: write_results(comparison, folders[task]) for task, comparison in comparisons.items()}
    rows = summarize_tasks(conclusions)
    write_text(out / "table.md", markdown_overall(rows, conclusions))
    write_text(out / "table.json", json_overall(rows, conclusions))
    print_overall(rows, conclusions, out)
    return rows


class ResultsOfOneTask(ValueError):
    """A folder is meant to hold a folder for each task, but is one of them."""


class SeedsSeenInTraining(ValueError):
    """A policy would be judged on initial states that it was trained on."""


def require_unseen(comparison: Comparison) -> None:
    """Check that a policy has not been trained on the seeds that it is to be evaluated on.

    Args:
        comparison: with seeds and checkpoint.

    Raises:
        SeedsSeenInTraining: the checkpoint's record names one of the seeds as a demonstration's.
    """
    shared = sorted(read_seen_seeds(Path(comparison.checkpoint)) & set(comparison.seeds))
    if shared:
        some = ", ".join(map(str, shared[:5])) + (", …" if len(shared) > 5 else "")
        raise SeedsSeenInTraining(
            f"{comparison.task}: {len(shared)} of {len(comparison.seeds)} seeds ({some}) are initial states of the "
            f"demonstrations that {comparison.checkpoint} was trained on; choose others, "
            f"e.g. from {EVALUATION_SEEDS} on, where demonstrations are not recorded unless asked for"
        )


def run_missing(
    comparisons: Mapping[str, Comparison], folders: Mapping[str, Path], launcher: Launcher | None = None
) -> None:
    """Run what is missing in results folders, tasks in order.

    Args:
        comparisons: by task.
        folders: by task.
        launcher: where episodes run; in this process if None.

    Raises:
        ConfigurationMismatch, EvaluationAborted, LauncherError: see :func:`compare`.
    """
    launcher = launcher or LocalLauncher()
    with ExitStack() as open_stores:
        stores = {
            task: open_stores.enter_context(_opened(comparison, folders[task], launcher))
            for task, comparison in comparisons.items()
        }
        done = {task: store.done(not comparisons[task].retry_crashed) for task, store in stores.items()}
        units = [
            unit
            for task, each in comparisons.items()
            for unit in plan_units(task, each.repeats, each.seeds, done[task], each.block_size)
        ]
        keepers = {task: ObservationKeeper(folder) for task, folder in folders.items()}

        def keep(batch: Batch) -> None:
            keepers[batch.task].keep(batch.observations)

        finished = sum(len(comparison.episodes() & done[task]) for task, comparison in comparisons.items())
        _collect(launcher.run(comparisons, units), stores, units, finished, before_saving=keep)


def _opened(comparison: Comparison, folder: Path, launcher: Launcher) -> ResultStore:
    contestants = comparison.contestants()
    policy, samplers = contestants.policy, contestants.samplers
    device = getattr(policy, "device", torch.device("cpu"))
    return ResultStore(
        folder,
        configuration={
            "task": comparison.task,
            "environment": {"id": comparison.make_env.id, **comparison.make_env.kwargs},
            "checkpoint": checkpoint_digest(comparison.checkpoint),
            "policy": policy.config.to_dict(),
        },
        samplers={
            name: contestants.recipe(name, comparison.recipes.get(name, repr(sampler)))
            for name, sampler in samplers.items()
        },
        provenance={
            **collect_provenance(comparison.checkpoint, comparison.seeds, device),
            "repeats": dict(comparison.repeats),
            "launcher": repr(launcher),
        },
        analysis=comparison.analysis,
    )


def _collect(
    batches: Iterable[Batch],
    stores: Mapping[str, ResultStore],
    units: Sequence[Unit],
    finished: int,
    before_saving: Callable[[Batch], None],
) -> None:
    """Save each episode as it comes, and show the progress."""
    awaited = Counter[tuple[str, str]]()
    for unit in units:
        awaited[unit.task, unit.sampler] += len(unit.keys)
    ended, successes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    with progress_bar("episodes", total=finished + awaited.total(), completed=finished) as bar:
        for batch in batches:
            before_saving(batch)
            for result in batch.records:
                stores[batch.task].append(result)
                which = batch.task, result.sampler
                ended[which] += 1
                successes[which] += result.success
                bar.describe(f"{batch.task} {result.sampler} {successes[which]}/{ended[which]}")
                bar.advance()
                if ended[which] == awaited[which]:
                    _log.info("%s, %s: %d of %d episodes of this run succeeded", *which, successes[which], ended[which])
