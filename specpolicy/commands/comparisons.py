"""What commands that compare samplers have in common: from a configuration to a comparison."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from specpolicy.composition import ConfigError, choices, compose, parse_repeats, plain

if TYPE_CHECKING:
    from specpolicy.evaluation.comparison import Comparison


def tasks_with_checkpoint(command: str, overrides: Sequence[str]) -> list[str]:
    """The tasks that a command can be run on: those whose checkpoint is there."""
    tasks = {task: compose(command, [*overrides, f"task={task}"]).checkpoint for task in choices("task")}
    there = [task for task, checkpoint in tasks.items() if (Path(checkpoint) / "config.json").is_file()]
    absent = [f"{task} ({checkpoint})" for task, checkpoint in tasks.items() if task not in there]
    if not there:
        raise ConfigError(f"no task has a checkpoint: {', '.join(absent)}; run `specpolicy train` first")
    if absent:
        logging.getLogger(__name__).info("left out for want of a checkpoint: %s", ", ".join(absent))
    return there


def composed(
    command: str, overrides: Sequence[str], samplers: Sequence[str] | None
) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration of a command, and the recipe of each sampler."""
    configs = {name: compose(command, [*overrides, f"sampler={name}"]) for name in samplers or ["free_block"]}
    return next(iter(configs.values())), {name: recipe_of(cfg) for name, cfg in configs.items()}


def recipe_of(cfg: DictConfig, predrafts: bool = False) -> DictConfig:
    """The chosen sampler's configuration; inside that of its compiled twin, if ``compile`` names a backend."""
    if "compile" not in cfg or cfg.compile is None:  # not all commands have the switch
        return cfg.sampler
    return OmegaConf.create(
        {
            "_target_": "specpolicy.recipes.compiled",
            "_partial_": True,
            "sampler": plain(cfg.sampler),
            "backend": cfg.compile,
            # Episodes come together or, when most have ended, in a batch that is filled up; latency is measured alone.
            "batches": sorted({1, cfg.num_envs}),
            "predrafts": predrafts,
        }
    )


def comparison_of(cfg: DictConfig, recipes: Mapping[str, Any], seeds: Sequence[int]) -> Comparison:
    """What a command's configuration asks to compare."""
    from specpolicy.evaluation.comparison import Comparison, TrainedPolicy
    from specpolicy.evaluation.player import MakeEnv

    task, checkpoint = cfg.task.name, str(cfg.checkpoint)
    makers = {name: instantiate(recipe) for name, recipe in recipes.items()}
    return Comparison(
        task=task,
        contestants=TrainedPolicy(checkpoint, task, makers, cfg.device).pinned(),
        make_env=MakeEnv(cfg.task.env),
        seeds=seeds,
        repeats=parse_repeats(plain(cfg.repeats), list(recipes)),
        checkpoint=checkpoint,
        recipes={name: plain(recipe) for name, recipe in recipes.items()},
        num_envs=cfg.num_envs,
        threads=cfg.threads or None,
        block_size=cfg.block_size,
        retry_crashed=cfg.retry_crashed,
        latency_calls=cfg.latency_calls,
        latency_threads=cfg.latency_threads or None,
        control_hz=cfg.task.control_hz,
        video=tuple(plain(cfg.video)),
    )
