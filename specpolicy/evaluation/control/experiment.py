"""A whole experiment: what is missing is run, then everything is summed up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from specpolicy.control.action_space import ActionLimits, ActionSpec
from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.controller import ControllerConfig
from specpolicy.control.guards import Guards
from specpolicy.control.inference import can_predraft, max_delay_of
from specpolicy.control.latency import Measured
from specpolicy.control.motion_limits import MotionLimits
from specpolicy.control.trace import TraceError, read_trace, write_trace
from specpolicy.evaluation.comparison import PolicyAndSamplers, write_text
from specpolicy.evaluation.results import ResultStore, read_results
from specpolicy.evaluation.summary import SummaryRow, summarize_controllers
from specpolicy.evaluation.tables import json_table, markdown_table, rich_table
from specpolicy.policies.protocols import reduced_precision
from specpolicy.rollout.env_worker import EnvPool, MakeEnv, MakeViews, WorkerConfig
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult, EpisodeSpec, episode_keys, plan_units
from specpolicy.rollout.runner import MakeClock, run_episodes, run_episodes_singly
from specpolicy.utils.digests import checkpoint_digest
from specpolicy.utils.progress import Bar, progress_bar
from specpolicy.utils.provenance import collect_provenance

_log = logging.getLogger(__name__)
TICKS = "ticks"


def ticks_path(out: Path, controller: ControllerConfig, seed: int, repeat: int) -> Path:
    """Name the file of an episode's trace.

    Args:
        out: the results folder.
        controller: that was run.
        seed: of the episode.
        repeat: likewise.

    Returns:
        A parquet file in ``out``.
    """
    return out / TICKS / controller.slug / f"{seed}-{repeat}.parquet"


def conclude(
    task: str,
    controllers: Sequence[ControllerConfig],
    contestants: PolicyAndSamplers,
    wanted: AbstractSet[EpisodeKey],
    out: Path,
    timeline: bool = True,
) -> list[SummaryRow]:
    """Write tables and figures, and print the table.

    Args:
        task: its name.
        controllers: that were run.
        contestants: the policy and its samplers.
        wanted: the episodes to summarize.
        out: the results folder.
        timeline: draw each controller's first episode.

    Returns:
        A row for each controller.
    """
    from specpolicy.evaluation.plots import NothingToPlot, plot_summary

    records = [record for record in read_results(out)[0] if record.key in wanted]
    by_name = {controller.name: controller for controller in controllers}
    paths: dict[str, list[Path]] = {name: [] for name in by_name}
    for record in records:
        if not record.crashed:
            paths[record.sampler].append(ticks_path(out, by_name[record.sampler], record.seed, record.repeat))
    exact = {name: bool(sampler.exact) for name, sampler in contestants.samplers.items()}
    precision = {name: reduced_precision(sampler) for name, sampler in contestants.samplers.items()}
    rows = summarize_controllers(controllers, records, exact, paths, precision)
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
        _draw_timelines(controllers, paths, out)
    console.print(f"Results in {out}: table.md, table.json, success_against_latency.png, timelines, episodes, ticks.")
    return rows


def _draw_timelines(controllers: Sequence[ControllerConfig], paths: dict[str, list[Path]], out: Path) -> None:
    """The first episode of each controller, unless it has been drawn."""
    from specpolicy.evaluation.timeline import draw_timeline

    for controller in controllers:
        target = out / "timelines" / f"{controller.slug}.png"
        if target.exists() or not paths[controller.name]:
            continue
        try:
            trace = read_trace(paths[controller.name][0])
        except TraceError as error:
            _log.warning("no timeline: %s", error)
            continue
        draw_timeline(trace, target, f"{controller.name}, seed {trace.seed}")


@dataclass(frozen=True)
class ControlExperiment:
    """Controllers of one policy on the seeds of one task.

    Attributes:
        task: its name.
        contestants: gives the policy and the samplers that the controllers name.
        make_env: makes an environment.
        controllers: the controllers.
        seeds: of the initial states. repeats: episodes for each of them.
        action_spec: of the task's actions.
        checkpoint: where the policy came from, for the record. recipes: of the samplers, likewise.
        rate_hz: ticks a second.
        guards: see :class:`Guards`.
        limits: of motion, and the controller's rate; None: one command an action, within the environment's box.
        max_ticks: end an episode after so many ticks, even if the environment would go on.
        make_clock: makes the clock of every episode, which then run one by one; None simulates the controllers'
            latencies.
        make_views: who watches; episodes then run one by one.
        make_recorders: who watches episodes where they are played, as many side by side as there are.
        num_envs: episodes that share batches of inference under simulated latency.
        threads: torch's threads; None leaves them as they are.
        block_size: seeds that every controller runs before the next ones.
        retry_crashed: run crashed episodes of an earlier run again.
        crash_limit: give up after so many crashes in a row; None: never.
        timeline: write a picture of each controller's first episode.
    """

    task: str
    contestants: Callable[[], PolicyAndSamplers]
    make_env: MakeEnv
    controllers: Sequence[ControllerConfig]
    seeds: Sequence[int]
    action_spec: ActionSpec
    checkpoint: str
    recipes: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    rate_hz: float = 20.0
    guards: Guards = field(default_factory=Guards)
    limits: MotionLimits | None = None
    max_ticks: int | None = None
    make_clock: MakeClock | None = None
    make_views: MakeViews | None = None
    make_recorders: MakeViews | None = None
    num_envs: int = 8
    threads: int | None = None
    block_size: int = 25
    retry_crashed: bool = False
    crash_limit: int | None = 20
    timeline: bool = True

    @property
    def alone(self) -> bool:
        """Whether episodes must run one at a time: a wall clock, somebody watching, or latencies to be measured."""
        measured = any(isinstance(controller.injected.latency, Measured) for controller in self.controllers)
        return self.make_clock is not None or self.make_views is not None or measured or self.num_envs == 1


def run_control(experiment: ControlExperiment, out: Path) -> list[SummaryRow]:
    """Run what is missing in ``out``, then write and print the table, and draw the figures.

    ``out`` holds the episodes (parquet shards and a manifest, see :class:`ResultStore`), ``ticks/<controller>/`` with a
    parquet file of ticks for each episode, ``table.md``, ``table.json``, ``success_against_latency.png`` and
    ``timelines/``. Run it again after any interruption: finished episodes are not repeated.

    Args:
        experiment: what to run.
        out: the results folder.

    Returns:
        A row for each controller.

    Raises:
        ValueError: a controller pre-drafts with a sampler that cannot, two controllers have one name, or the action
            description has another dimension.
        ConfigurationMismatch: ``out`` holds results of something else.
        EvaluationAborted: nothing but crashes came.
    """
    contestants = experiment.contestants()
    _check(experiment, contestants)
    controllers = {controller.name: controller for controller in experiment.controllers}
    threads = torch.get_num_threads()
    if experiment.threads is not None:
        torch.set_num_threads(experiment.threads)
    try:
        with _store(experiment, contestants, out) as store:
            done = store.done(not experiment.retry_crashed)
            repeats = dict.fromkeys(controllers, experiment.repeats)
            units = plan_units(experiment.task, repeats, experiment.seeds, done, experiment.block_size)
            specs = [_spec(controllers[key.sampler], key) for unit in units for key in unit.keys]
            wanted = {key for name in controllers for key in episode_keys(name, experiment.seeds, experiment.repeats)}
            with _progress(experiment, len(wanted), len(wanted & done)) as bar:
                for result in _play(experiment, contestants, specs):
                    _save(result, controllers[result.sampler], store, out)
                    if bar is not None:
                        bar.describe(f"{result.sampler}, seed {result.seed}")
                        bar.advance()
    finally:
        torch.set_num_threads(threads)
    return conclude(experiment.task, experiment.controllers, contestants, wanted, out, experiment.timeline)


def _spec(controller: ControllerConfig, key: EpisodeKey) -> EpisodeSpec:
    return EpisodeSpec(key, controller.sampler, controller.executor, controller.injected.latency)


def _progress(experiment: ControlExperiment, total: int, done: int) -> AbstractContextManager[Bar | None]:
    """A bar; nothing where somebody watches, for a terminal has one line that lives."""
    return progress_bar("episodes", total, done) if experiment.make_views is None else nullcontext()


def _check(experiment: ControlExperiment, contestants: PolicyAndSamplers) -> None:
    controllers, spec = experiment.controllers, experiment.action_spec
    dim = getattr(contestants.policy.config, "action_dim", spec.dim)
    if dim != spec.dim:
        raise ValueError(
            f"the policy's actions have {dim} entries, their description (delta_dims={list(spec.delta_dims)}, "
            f"absolute_dims={list(spec.absolute_dims)}) has {spec.dim}: take the one of the policy's own task"
        )
    if experiment.limits is not None:  # as far as it can be told without an environment; the rest when one is made
        experiment.limits.commands_per_action(experiment.rate_hz)
        experiment.limits.box(ActionLimits.unlimited(spec.dim), spec)
    names = [controller.name for controller in controllers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"there are two controllers of the name {twice[0]!r}; give every executor, sampler and latency once"
        )
    for controller in controllers:
        if controller.executor.config.predraft is not None and not can_predraft(
            contestants.policy, contestants.samplers[controller.sampler]
        ):
            raise ValueError(
                f"executor {controller.executor_name!r} pre-drafts, and {controller.sampler!r} cannot: take a "
                "speculative sampler such as free_block, or another executor"
            )


def _store(experiment: ControlExperiment, contestants: PolicyAndSamplers, out: Path) -> ResultStore:
    policy = contestants.policy
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
            "clock": "simulated latency" if experiment.make_clock is None else "real time",
            "guards": guards,
            **({"limits": experiment.limits.to_dict()} if experiment.limits is not None else {}),
            "actions": {
                "delta_dims": list(experiment.action_spec.delta_dims),
                "absolute_dims": list(experiment.action_spec.absolute_dims),
            },
        },
        samplers={
            controller.name: controller.recipe(
                contestants.recipe(controller.sampler, experiment.recipes.get(controller.sampler))
            )
            for controller in experiment.controllers
        },
        provenance={
            **collect_provenance(experiment.checkpoint, experiment.seeds, device),
            "repeats": experiment.repeats,
            "num_envs": 1 if experiment.alone else experiment.num_envs,
        },
    )


def _play(
    experiment: ControlExperiment, contestants: PolicyAndSamplers, specs: Sequence[EpisodeSpec]
) -> Iterator[EpisodeResult]:
    policy, samplers, _ = contestants
    config = WorkerConfig(
        experiment.make_env,
        policy.config.n_obs_steps,
        experiment.action_spec,
        experiment.guards,
        experiment.rate_hz,
        experiment.max_ticks,
        experiment.limits,
        max_delay_of(policy),
        experiment.make_recorders,
    )
    if experiment.alone:
        make_clock = experiment.make_clock or SimulatedLatencyClock
        yield from run_episodes_singly(
            policy,
            samplers,
            config,
            specs,
            make_clock,
            task=experiment.task,
            crash_limit=experiment.crash_limit,
            make_views=experiment.make_views,
        )
        return
    with EnvPool(config, min(experiment.num_envs, max(len(specs), 1))) as pool:
        yield from run_episodes(policy, samplers, pool, specs, task=experiment.task, crash_limit=experiment.crash_limit)


def _save(result: EpisodeResult, controller: ControllerConfig, store: ResultStore, out: Path) -> None:
    """The ticks first: an episode that counts as finished has them."""
    if result.trace is not None:
        labels = {
            "executor": controller.executor_name,
            "sampler": controller.sampler,
            "injected": controller.injected.label,
        }
        write_trace(result.trace, ticks_path(out, controller, result.seed, result.repeat), labels)
        if result.trace.stopped is not None:
            _log.warning(
                "%s, seed %d: a guard stopped the episode: %s%s",
                controller.name,
                result.seed,
                result.trace.stopped,
                "" if result.trace.reason is None else f" ({result.trace.reason})",
            )
    store.append(result)
