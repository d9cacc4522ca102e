"""``specpolicy control``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from specpolicy.commands.common import (
    camera_images,
    executor_with_settings,
    finish_recording,
    recipe_of,
    recording_of,
)
from specpolicy.config import ConfigError, available, compose, parse_seeds, split_list_override, to_container

if TYPE_CHECKING:
    from specpolicy.control.controller import ControllerConfig
    from specpolicy.evaluation.comparison import PolicyAndSamplers
    from specpolicy.rollout.env_worker import MakeViews
    from specpolicy.rollout.episodes import EpisodeKey


def control(overrides: Sequence[str]) -> None:
    """Run a policy in a real-time loop: executors, clocks, guards; lists are crossed into an experiment.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    samplers, others = split_list_override(overrides, "sampler")
    executors, others = split_list_override(others, "executor")
    latencies, others = split_list_override(others, "latency")
    samplers, executors = samplers or ["free_block"], executors or ["receding_horizon"]
    by_sampler = {name: _composed(others, name, executors[0]) for name in samplers}
    by_executor = {name: _composed(others, samplers[0], name) for name in executors}
    cfg = next(iter(by_executor.values()))
    predrafts = any("predraft" in each.executor for each in by_executor.values())
    recipes = {name: recipe_of(each, predrafts) for name, each in by_sampler.items()}
    real_time = cfg.clock._target_.endswith("RealTimeClock")
    if real_time and latencies is not None:
        raise ConfigError(f"latency={latencies}: in real time it is what it is; take clock=simulated to choose one")
    if "actions" not in cfg:
        raise ConfigError(
            f"nothing says what the actions of task {cfg.task.name!r} mean: add configs/actions/{cfg.task.name}.yaml "
            f"as for {', '.join(available('actions'))}"
        )

    from specpolicy.evaluation.comparison import CheckpointLoader
    from specpolicy.evaluation.control.experiment import ControlExperiment, run_control
    from specpolicy.policies.checkpoint import read_seen_seeds
    from specpolicy.rollout.env_worker import MakeEnv
    from specpolicy.rollout.episodes import EVALUATION_SEEDS, episode_keys

    seeds = parse_seeds(to_container(cfg.seeds), EVALUATION_SEEDS)
    if seen := read_seen_seeds(Path(cfg.checkpoint)) & set(seeds):
        warnings.warn(f"{len(seen)} of {len(seeds)} seeds are initial states of the policy's training", stacklevel=1)
    predictor = {name.lstrip("+~"): value for name, _, value in (each.partition("=") for each in others)}.get(
        "predictor"
    )
    contestants = CheckpointLoader(
        str(cfg.checkpoint), cfg.task.name, {name: instantiate(recipe) for name, recipe in recipes.items()}, cfg.device
    ).pinned()
    controllers = _controllers(
        cfg, by_executor, list(recipes), latencies or [str(to_container(cfg.latency))], real_time, predictor
    )
    controllers = _possible(controllers, contestants())
    recording = recording_of(cfg, [each.name for each in controllers], cfg.rate_hz)
    experiment = ControlExperiment(
        task=cfg.task.name,
        contestants=contestants,
        make_env=MakeEnv(
            cfg.task.env,
            {**({"render_mode": "rgb_array"} if cfg.camera else {}), **camera_images(cfg, contestants().policy)},
        ),
        controllers=controllers,
        seeds=seeds,
        action_spec=instantiate(cfg.actions),
        checkpoint=str(cfg.checkpoint),
        recipes={name: to_container(recipe) for name, recipe in recipes.items()},
        repeats=cfg.repeats,
        rate_hz=cfg.rate_hz,
        guards=instantiate(cfg.guards),
        limits=instantiate(cfg.limits) if "limits" in cfg else None,
        max_ticks=cfg.max_ticks,
        make_clock=instantiate(cfg.clock) if real_time else None,
        make_views=_views(cfg.view),
        make_recorders=recording,
        num_envs=cfg.num_envs,
        threads=cfg.threads or None,
        block_size=cfg.block_size,
        retry_crashed=cfg.retry_crashed,
        timeline=cfg.timeline,
    )
    run_control(experiment, Path(cfg.out))
    names = [each.name for each in controllers]
    finish_recording(recording, {key for name in names for key in episode_keys(name, seeds, cfg.repeats)})


def _composed(overrides: Sequence[str], sampler: str, executor: str) -> DictConfig:
    """One choice of each; what an executor plays is the policy's to say, unless somebody does."""
    chosen = [*overrides, f"sampler={sampler}", f"executor={executor}"]
    cfg = compose("control", chosen)
    if cfg.n_action_steps is not None:
        return cfg
    from specpolicy.interop.loading import read_policy_config

    return compose("control", [*chosen, f"n_action_steps={read_policy_config(Path(cfg.checkpoint)).n_action_steps}"])


def _controllers(
    cfg: DictConfig, by_executor: Mapping[str, DictConfig], samplers: Sequence[str], latencies: Sequence[str],
    real_time: bool, predictor: str | None,
) -> list[ControllerConfig]:  # fmt: skip
    from specpolicy.control.controller import InjectedLatency, grid, parse_latency
    from specpolicy.control.latency import Measured

    executors = dict(executor_with_settings(name, each, predictor) for name, each in by_executor.items())
    own = InjectedLatency("real time", Measured(), {"distribution": "real time"})
    injected = {
        sampler: [own] if real_time else [parse_latency(text, sampler, cfg.recording) for text in latencies]
        for sampler in samplers
    }
    return grid(executors, injected)


def _possible(controllers: list[ControllerConfig], contestants: PolicyAndSamplers) -> list[ControllerConfig]:
    """In a crossing of lists, the pairs that there are: a few-step sampler cannot finish a pre-draft."""
    from specpolicy.control.inference import can_predraft

    able = {name for name, sampler in contestants.samplers.items() if can_predraft(contestants.policy, sampler)}
    kept = [each for each in controllers if each.executor.config.predraft is None or each.sampler in able]
    executors, samplers = ({getattr(each, name) for each in kept} for name in ("executor_name", "sampler"))
    left_out = [each for each in controllers if each not in kept]
    if any(each.executor_name not in executors or each.sampler not in samplers for each in left_out):
        return controllers  # something that was asked for would be left out altogether: run_control() says why not
    if left_out:
        names = ", ".join(dict.fromkeys(each.sampler for each in left_out))
        warnings.warn(f"without pre-drafting, which they cannot: {names}", stacklevel=1)
    return kept


def _views(view: str | None) -> MakeViews | None:
    """Who watches; what they need is looked for here, before anything is run."""
    from specpolicy.control.controller import file_name
    from specpolicy.control.viewers import RerunView, TerminalView
    from specpolicy.utils.extras import require

    if view is None:
        return None
    if view == "terminal":
        return lambda key: [TerminalView(key.sampler)]
    if view != "rerun" and not view.endswith(".rrd"):
        raise ConfigError(
            f"view={view!r}; write terminal, rerun, or a path that ends in .rrd; record= makes .mcap files"
        )
    require("rerun", "rerun")
    folder = None if view == "rerun" else Path(view)

    def views(key: EpisodeKey) -> list[Any]:
        save = None if folder is None else folder.with_name(f"{folder.stem}-{file_name(key.sampler)}.rrd")
        return [RerunView(key.sampler, save), TerminalView(key.sampler)]

    return views
