"""A whole experiment: what is missing is run, then everything is summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from specpolicy.control.actions import ActionMeaning
from specpolicy.control.clocks import ChargedClock
from specpolicy.control.guards import Guards
from specpolicy.control.latency import Measured
from specpolicy.control.recording import write_account
from specpolicy.control.sampled import can_predraft
from specpolicy.evaluation.comparison import Contestants
from specpolicy.evaluation.episodes import EpisodeRecord, episode_keys
from specpolicy.evaluation.player import MakeEnv
from specpolicy.evaluation.provenance import checkpoint_digest, collect_provenance
from specpolicy.evaluation.rollout import EvaluationAborted
from specpolicy.evaluation.store import ResultStore
from specpolicy.evaluation.units import plan_units
from specpolicy.progress import Bar, progress_bar

from .cells import Cell
from .conclusion import conclude, ticks_path
from .crew import Assignment, Outcome, play_together
from .rows import CellRow
from .seats import Stage, take_seats
from .solo import MakeClock, MakeViews, play_alone


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
    contestants: Callable[[], Contestants]
    make_env: MakeEnv
    cells: Sequence[Cell]
    seeds: Sequence[int]
    meaning: ActionMeaning
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


def run_control(experiment: ControlExperiment, out: Path) -> list[CellRow]:
    """Run what is missing in ``out``, then write and print the table, and draw the figures.

    ``out`` holds the episodes (parquet shards and a manifest, see :class:`ResultStore`), ``ticks/<cell>/`` with a
    parquet file of ticks for each episode, ``table.md``, ``summary.json``, ``success_against_latency.png`` and
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


def _check(experiment: ControlExperiment, contestants: Contestants) -> None:
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


def _store(experiment: ControlExperiment, contestants: Contestants, out: Path) -> ResultStore:
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
    experiment: ControlExperiment, contestants: Contestants, assignments: Sequence[Assignment]
) -> Iterator[Outcome]:
    policy: Any = contestants.policy
    horizon = policy.config.observation_horizon
    stage = Stage(
        experiment.make_env, experiment.meaning, experiment.guards, experiment.rate_hz, horizon, experiment.max_ticks
    )
    if experiment.alone:
        make_clock = experiment.make_clock or ChargedClock
        views = experiment.make_views or (lambda cell: ())
        yield from play_alone(policy, contestants.samplers, stage, make_clock, assignments, views)
        return
    seats = take_seats(stage, min(experiment.num_envs, max(len(assignments), 1)))
    try:
        yield from play_together(policy, contestants.samplers, seats, assignments)
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
    record = EpisodeRecord(task, cell.name, seed, repeat, False, 0, 0.0, (), 0, outcome.duration_s, outcome.error)
    account = outcome.account
    if account is not None:
        labels = {"executor": cell.executor_name, "sampler": cell.sampler, "charged": cell.charge.label}
        write_account(account, ticks_path(out, cell, seed, repeat), labels)
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
