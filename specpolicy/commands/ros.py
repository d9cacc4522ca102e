"""``specpolicy ros``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate

from specpolicy.commands.common import executor_with_settings, recipe_of
from specpolicy.config import ConfigError, compose, to_container

if TYPE_CHECKING:
    from specpolicy.ros.node import LoadedPolicy

_SETTINGS = (
    "name", "rate_hz", "seed", "repeat", "autostart", "use_sim_time", "reliable", "lockstep", "latency_ms", "ros_args",
    "out",
)  # fmt: skip


def ros(arguments: Sequence[str]) -> None:
    """Run a policy as a lifecycle node of ROS 2: specpolicy ros PATH config=square.

    Args:
        arguments: ``name=value``, and the checkpoint alone or as ``checkpoint=``.
    """
    paths = [each for each in arguments if "=" not in each or Path(each).exists()]
    overrides = [each for each in arguments if each not in paths]
    if len(paths) > 1:
        raise ConfigError(f"give one checkpoint; these are {len(paths)}: {', '.join(paths)}")
    overrides += [f'checkpoint="{path}"' for path in paths]
    given = {each.partition("=")[0] for each in overrides}
    for name, example in (("checkpoint", "specpolicy ros PATH config=NAME"), ("config", "config=square")):
        if name not in given:
            raise ConfigError(f"ros needs {name}=: {example}")
    cfg = compose("ros", overrides)

    from specpolicy.control.watchdog import Watchdog
    from specpolicy.interop.loading import read_policy_config
    from specpolicy.ros.interface import load_interface
    from specpolicy.ros.node import NodeSettings, PolicyNode
    from specpolicy.ros.watchdog import TopicSender

    interface = load_interface(str(cfg.config))
    if cfg.n_action_steps is None:
        steps = read_policy_config(Path(cfg.checkpoint)).n_action_steps
        cfg = compose("ros", [*overrides, f"n_action_steps={steps}"])
    settings = NodeSettings(**{name: to_container(cfg[name]) for name in _SETTINGS})

    def load() -> LoadedPolicy:
        return _loaded(cfg)

    print(f"{settings.name}: {cfg.checkpoint} on the topics of {cfg.config}; Ctrl-C stops it", flush=True)
    limits = instantiate(cfg.limits) if "limits" in cfg else None
    chosen = {name: value for name, _, value in (each.partition("=") for each in overrides)}
    name, predictor = chosen.get("executor", "asynchronous"), chosen.get("predictor")
    executor = executor_with_settings(name, cfg, predictor)[1][0]
    config = instantiate(cfg.watchdog) if "watchdog" in cfg else None
    commands_hz = settings.rate_hz * (1 if limits is None else limits.commands_per_action(settings.rate_hz))
    sender = TopicSender(interface, f"{settings.name}_watchdog", 1.0 / commands_hz, tuple(settings.ros_args))

    def start_watchdog() -> Watchdog:
        return Watchdog(sender, interface.spec.dim, config, start_s=120.0)  # it imports ROS and this package

    make_watchdog = None if config is None else start_watchdog
    PolicyNode(settings, interface, load, executor, instantiate(cfg.guards), limits, make_watchdog).run()


def _loaded(cfg: Any) -> LoadedPolicy:
    """The policy, its sampler compiled and warmed up, so that the first action is not later than the others."""
    import torch

    from specpolicy.control.inference import InferenceKind, InferenceRequest, PolicyRunner
    from specpolicy.interop.loading import load_policy
    from specpolicy.ros.node import LoadedPolicy

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    policy = load_policy(Path(cfg.checkpoint), cfg.device)
    predrafts = "predraft" in cfg.executor
    sampler = instantiate(recipe_of(cfg, predrafts))(policy)
    runner = PolicyRunner(policy, sampler)
    if predrafts and not runner.predrafts:
        raise ConfigError("the executor pre-drafts, which this sampler cannot; take another of the two")
    for _ in range(2):
        result = runner.infer(InferenceRequest(InferenceKind.WHOLE, policy.observations.zeros()))
        if result.error is not None:
            raise ConfigError(f"the policy cannot be asked: {result.error}")
    return LoadedPolicy(
        runner,
        policy.observations,
        policy.config.env_action_dim,
        {"checkpoint": str(cfg.checkpoint), "exact": str(bool(sampler.exact)).lower()},
    )
