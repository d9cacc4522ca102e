"""A whole experiment: what is missing is run, then everything is summed up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from specpolicy.control.action_space import ActionSpec
from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.controller import ControllerConfig
from specpolicy.control.inference import can_predraft
from specpolicy.control.latency import Measured
from specpolicy.control.safety import Guards
from specpolicy.control.trace import TraceError, read_trace, write_trace
from specpolicy.evaluation.comparison import PolicyAndSamplers, write_text
from specpolicy.evaluation.provenance import collect_provenance
from specpolicy.evaluation.results import ResultStore, read_results
from specpolicy.evaluation.summary import SummaryRow, summarize_controllers
from specpolicy.evaluation.tables import json_table, markdown_table, rich_table
from specpolicy.policies.checkpoint import checkpoint_digest
from specpolicy.rollout.control_runner import (
    Assignment,
    MakeClock,
    MakeViews,
    Outcome,
    run_control_batched,
    run_control_episode,
)
from specpolicy.rollout.control_workers import WorkerConfig, make_control_workers
from specpolicy.rollout.env_worker import MakeEnv
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult, episode_keys, plan_units
from specpolicy.rollout.runner import EvaluationAborted
from specpolicy.utils.progress import Bar, progress_bar

_log = logging.getLogger(__name__)
TICKS = "ticks"


def ticks_path(out: Path, cell: ControllerConfig, seed: int, repeat: int) -> Path:
    """Where the ticks of an episode are."""
    return out / TICKS / cell.slug / f"{seed}-{repeat}.parquet"


def conclude(
    task: str,
    cells: Sequence[ControllerConfig],
    contestants: PolicyAndSamplers,
    wanted: AbstractSet[EpisodeKey],
    out: Path,
    timeline: bool = True,
) -> list[SummaryRow]:
    """Write table, summary and figures about the ``wanted`` episodes into ``out``, and print the table."""
    from specpolicy.evaluation.plots import NothingToPlot, plot_summary

    records = [record for record in read_results(out)[0] if record.key in wanted]
    by_name = {cell.name: cell for cell in cells}
    paths: dict[str, list[Path]] = {name: [] for name in by_name}
    for record in records:
        if not record.crashed:
            paths[record.sampler].append(ticks_path(out, by_name[record.sampler], record.seed, record.repeat))
    exact = {name: bool(sampler.exact) for name, sampler in contestants.samplers.items()}
    rows = summarize_controllers(cells, records, exact, paths)
    seeds = len({record.seed for record in records})
    title = f"{task}, {seeds} seed{'s' if seeds != 1 else ''}"
    console = Console()
    console.print(rich_table(rows, title))
    write_text(out / "table.md", markdown_table(rows))
    write_text(out / "table.json", json_table(rows))
    try:
        plot_summary(rows, out / "success_against_latency.png", title=title)
    except NothingToPlot as error:
        _log.info("no plot: %s", error)
    if timeline:
        _draw_timelines(cells, paths, out)
    console.print(f"Results in {out}: table.md, table.json, success_against_latency.png, timelines, episodes, ticks.")
    return rows


def _draw_timelines(cells: Sequence[ControllerConfig], paths: dict[str, list[Path]], out: Path) -> None:
    """The first episode of each cell, unless it has been drawn."""
    from specpolicy.evaluation.timeline import draw_timeline

    for cell in cells:
        target = out / "timelines" / f"{cell.slug}.png"
        if target.exists() or not paths[cell.name]:
            continue
        try:
            account = read_trace(paths[cell.name][0])
        except TraceError as error:
            _log.warning("no timeline: %s", error)
            continue
        draw_timeline(account, target, f"{cell.name}, seed {account.seed}")


@dataclass(frozen=True)
class ControlExperiment:
    """Controllers of one policy on the seeds of one task.

    Attributes:
        task: its name.
        contestants: gives the policy and the samplers that the cells name.
        make_env: makes an environment.
        cells: the controllers.
        seeds: of the initial states. repeats: episodes for each of them.
        meaning: of the task's actions.
        checkpoint: where the policy came from, for the record. recipes: of the samplers, likewise.
        rate_hz: ticks a second.
        guards: see :class:`Guards`.
        max_ticks: end an episode after so many ticks, even if the environment would go on.
        make_clock: None charges the cells' latencies; else the clock of every episode, which then run one by one.
        make_views: who watches; episodes then run one by one.
        num_envs: episodes that share a network pass under a charged clock.
        threads: torch's threads; None leaves them as they are.
        block_size: seeds that every cell runs before the next ones.
        retry_crashed: run crashed episodes of an earlier run again.
        crash_limit: give up after so many crashes in a row; None: never.
        timeline: write a picture of each cell's first episode.
    """

    task: str
    contestants: Callable[[], PolicyAndSamplers]
    make_env: MakeEnv
    cells: Sequence[ControllerConfig]
    seeds: Sequence[int]
    meaning: ActionSpec
    checkpoint: str
    recipes: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    rate_hz: float = 20.0
    guards: Guards = field(default_factory=Guards)
    max_ticks: int | None = None
    make_clock: MakeClock | None = None
    make_views: MakeViews | None = None
    num_envs: int = 8
    threads: int | None = None
    block_size: int = 25
    retry_crashed: bool = False
    crash_limit: int | None = 20
    timeline: bool = True

    @property
    def alone(self) -> bool:
        """Whether episodes must run one at a time: a wall clock, somebody watching, or latencies to be measured."""
        measured = any(isinstance(cell.charge.latency, Measured) for cell in self.cells)
        return self.make_clock is not None or self.make_views is not None or measured or self.num_envs == 1


def run_control(experiment: ControlExperiment, out: Path) -> list[SummaryRow]:
    """Run what is missing in ``out``, then write and print the table, and draw the figures.

    ``out`` holds the episodes (parquet shards and a manifest, see :class:`ResultStore`), ``ticks/<cell>/`` with a
    parquet file of ticks for each episode, ``table.md``, ``table.json``, ``success_against_latency.png`` and
    ``timelines/``. Run it again after any interruption: finished episodes are not repeated.

    Raises:
        ValueError: a cell pre-drafts with a sampler that cannot, two cells have one name, or the actions are described
            as of another dimension.
        ConfigurationMismatch: ``out`` holds results of something else.
        EvaluationAborted: nothing but crashes came.
    """
    contestants = experiment.contestants()
    _check(experiment, contestants)
    cells = {cell.name: cell for cell in experiment.cells}
    threads = torch.get_num_threads()
    if experiment.threads is not None:
        torch.set_num_threads(experiment.threads)
    try:
        with _store(experiment, contestants, out) as store:
            done = store.done(not experiment.retry_crashed)
            repeats = dict.fromkeys(cells, experiment.repeats)
            units = plan_units(experiment.task, repeats, experiment.seeds, done, experiment.block_size)
            assignments = [Assignment(cells[key.sampler], key.seed, key.repeat) for unit in units for key in unit.keys]
            wanted = {key for name in cells for key in episode_keys(name, experiment.seeds, experiment.repeats)}
            with _progress(experiment, len(wanted), len(wanted & done)) as bar:
                for outcome in _guarded(_play(experiment, contestants, assignments), experiment.crash_limit):
                    _save(outcome, experiment.task, store, out)
                    if bar is not None:
                        bar.describe(f"{outcome.assignment.cell.name}, seed {outcome.assignment.seed}")
                        bar.advance()
    finally:
        torch.set_num_threads(threads)
    return conclude(experiment.task, experiment.cells, contestants, wanted, out, experiment.timeline)


def _progress(experiment: ControlExperiment, total: int, done: int) -> AbstractContextManager[Bar | None]:
    """A bar; nothing where somebody watches, for a terminal has one line that lives."""
    return progress_bar("episodes", total, done) if experiment.make_views is None else nullcontext()


def _check(experiment: ControlExperiment, contestants: PolicyAndSamplers) -> None:
    cells, meaning = experiment.cells, experiment.meaning
    dim = getattr(contestants.policy.config, "action_dim", meaning.dim)
    if dim != meaning.dim:
        raise ValueError(
            f"the policy's actions have {dim} entries, their description (zeroed={list(meaning.zeroed)}, "
            f"kept={list(meaning.kept)}) has {meaning.dim}: take the one of the policy's own task"
        )
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"there are two cells of the name {twice[0]!r}; give every executor, sampler and latency once")
    for cell in cells:
        if cell.executor.rules.ahead is not None and not can_predraft(
            contestants.policy, contestants.samplers[cell.sampler]
        ):
            raise ValueError(
                f"executor {cell.executor_name!r} pre-drafts, and {cell.sampler!r} cannot: take a speculative sampler "
                "such as free_block, or another executor"
            )


def _store(experiment: ControlExperiment, contestants: PolicyAndSamplers, out: Path) -> ResultStore:
    policy, samplers = contestants
    device = getattr(policy, "device", torch.device("cpu"))
    guards = {name: getattr(experiment.guards, name) for name in experiment.guards.__dataclass_fields__}
    return ResultStore(
        out,
        configuration={
            "kind": "control",
            "task": experiment.task,
            "environment": {"id": experiment.make_env.id},
            "checkpoint": checkpoint_digest(experiment.checkpoint),
            "policy": policy.config.to_dict(),
            "rate_hz": experiment.rate_hz,
            "max_ticks": experiment.max_ticks,
            "clock": "charged" if experiment.make_clock is None else "real time",
            "guards": guards,
            "actions": {"zeroed": list(experiment.meaning.zeroed), "kept": list(experiment.meaning.kept)},
        },
        samplers={
            cell.name: cell.recipe(bool(samplers[cell.sampler].exact), experiment.recipes.get(cell.sampler))
            for cell in experiment.cells
        },
        provenance={
            **collect_provenance(experiment.checkpoint, experiment.seeds, device),
            "repeats": experiment.repeats,
            "num_envs": 1 if experiment.alone else experiment.num_envs,
        },
    )


def _play(
    experiment: ControlExperiment, contestants: PolicyAndSamplers, assignments: Sequence[Assignment]
) -> Iterator[Outcome]:
    policy: Any = contestants.policy
    horizon = policy.config.n_obs_steps
    stage = WorkerConfig(
        experiment.make_env, experiment.meaning, experiment.guards, experiment.rate_hz, horizon, experiment.max_ticks
    )
    if experiment.alone:
        make_clock = experiment.make_clock or SimulatedLatencyClock
        views = experiment.make_views or (lambda cell: ())
        yield from run_control_episode(policy, contestants.samplers, stage, make_clock, assignments, views)
        return
    seats = make_control_workers(stage, min(experiment.num_envs, max(len(assignments), 1)))
    try:
        yield from run_control_batched(policy, contestants.samplers, seats, assignments)
    finally:
        for seat in seats:
            seat.close()


def _guarded(outcomes: Iterable[Outcome], limit: int | None) -> Iterator[Outcome]:
    """Hands on outcomes, and stops when nothing but crashes comes."""
    in_a_row = 0
    for outcome in outcomes:
        yield outcome
        in_a_row = in_a_row + 1 if outcome.error is not None else 0
        if limit is not None and in_a_row >= limit:
            raise EvaluationAborted(
                f"{in_a_row} episodes crashed in a row, the last one ({outcome.assignment.cell.name}, seed "
                f"{outcome.assignment.seed}) with: {outcome.error}. Mend the cause, then run them again with "
                "retry_crashed=true."
            )


def _save(outcome: Outcome, task: str, store: ResultStore, out: Path) -> None:
    """The ticks first: an episode that counts as finished has them."""
    cell, seed, repeat = outcome.assignment.cell, outcome.assignment.seed, outcome.assignment.repeat
    record = EpisodeResult(task, cell.name, seed, repeat, False, 0, 0.0, (), 0, outcome.duration_s, outcome.error)
    account = outcome.account
    if account is not None:
        labels = {"executor": cell.executor_name, "sampler": cell.sampler, "charged": cell.charge.label}
        write_trace(account, ticks_path(out, cell, seed, repeat), labels)
        played = [job for job in account.jobs if job.handover is not None]
        record = replace(
            record,
            success=account.success,
            steps=len(account.ticks),
            return_=account.return_,
            passes=tuple(job.passes for job in played if job.passes is not None),
            evaluations=sum(job.evaluations or 0 for job in account.jobs),
        )
    store.append(record)
