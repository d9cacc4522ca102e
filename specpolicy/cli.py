"""The ``specpolicy`` command: sub-commands composed by Hydra, handed to the library as plain objects."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from specpolicy import __version__

from .composition import choices, compose, parse_seeds, split_list_override

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for an error with a message, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="specpolicy",
        description="Exact speculative sampling of robot diffusion policies.",
        epilog="Overrides are Hydra's: task=square sampler=[ddpm,free_block] sampler.window=40 seeds=0:20 out=runs/x. "
        f"Tasks: {', '.join(choices('task'))}. Samplers: {', '.join(choices('sampler'))}.",
    )
    parser.add_argument("--version", action="version", version=f"specpolicy {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    tasks = "; ".join(f"{name}: {command.__doc__}" for name, command in COMMANDS.items())
    parser.add_argument("command", choices=sorted(COMMANDS), help=tasks)
    parser.add_argument("overrides", nargs="*", metavar="name=value")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("specpolicy").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        COMMANDS[options.command](options.overrides)
    except KeyboardInterrupt:
        print("interrupted; what has finished is saved, the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    except InstantiationException as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if options.debug or not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _is_ours(error: Exception) -> bool:
    """Errors that this library raised to speak to a user; anything else keeps its traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return raised_in.split(".")[0] in ("specpolicy", "specpolicy_envs")


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def train(overrides: Sequence[str]) -> None:
    """train a policy from robomimic HDF5"""
    from specpolicy.policies import PolicyConfig
    from specpolicy.training import TrainingSettings, train_policy

    cfg = compose("train", overrides)
    task = _plain(cfg.task)
    config = PolicyConfig(
        task=task["name"], observations=task["observations"], action_dim=task["action_dim"], **_plain(cfg.policy)
    )
    settings = TrainingSettings(**_plain(cfg.training))
    train_policy(config, cfg.dataset, settings, cfg.out, cfg.device, cfg.validation_demos)
    print(f"policy in {cfg.out}")


def rollout(overrides: Sequence[str]) -> None:
    """run a policy in its environment with one or more samplers and compare them"""
    from specpolicy.evaluation.compare import CompareSettings, compare
    from specpolicy.evaluation.player import MakeEnv
    from specpolicy.policies.checkpoint import load_policy

    names, others = split_list_override(overrides, "sampler")
    configs = {name: compose("rollout", [*others, f"sampler={name}"]) for name in names or ["free_block"]}
    cfg: DictConfig = next(iter(configs.values()))
    policy = load_policy(Path(cfg.checkpoint), cfg.device, task=cfg.task.name)
    samplers = {name: instantiate(each.sampler)(policy.scheduler) for name, each in configs.items()}
    compare(
        policy,
        samplers,
        MakeEnv(cfg.task.env),
        Path(cfg.out),
        CompareSettings(
            task=cfg.task.name,
            checkpoint=str(cfg.checkpoint),
            seeds=parse_seeds(_plain(cfg.seeds)),
            recipes={name: _plain(each.sampler) for name, each in configs.items()},
            repeats=cfg.repeats,
            num_envs=cfg.num_envs,
            threads=cfg.threads or None,
            latency_calls=cfg.latency_calls,
            control_hz=cfg.task.control_hz,
            video=tuple(_plain(cfg.video)),
        ),
    )


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"rollout": rollout, "train": train}


if __name__ == "__main__":
    sys.exit(main())
