"""Environments in workers: each plays the loop's side of an episode, from inference request to inference request."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import gymnasium

from specpolicy.control.action_space import ActionSpec
from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import Executor
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceRequest, InferenceResult
from specpolicy.control.latency import Latency
from specpolicy.control.loop import ControlCoroutine, ControlSetup, control_steps
from specpolicy.control.motion_limits import MotionLimits
from specpolicy.control.safety import InferenceFailed
from specpolicy.control.trace import EpisodeTrace
from specpolicy.control.viewers import View
from specpolicy.rollout.episodes import EpisodeKey
from specpolicy.rollout.workers import WorkerError, make_workers
from specpolicy.utils.checks import check_integer
from specpolicy.utils.errors import format_exception

EnvFactory = Callable[[], "gymnasium.Env[Any, Any]"]

MakeViews = Callable[[EpisodeKey], Sequence[View]]
"""Makes what watches an episode."""


@dataclass(frozen=True)
class MakeEnv:
    """A gymnasium environment by name, made where it is needed: also in another process.

    Attributes:
        id: as for ``gymnasium.make``; ``"module:Name-v0"`` imports the module that registers it.
        kwargs: further arguments of ``gymnasium.make``.
        imports: modules to import first, where the id does not name them.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()

    def __call__(self) -> gymnasium.Env[Any, Any]:
        """Make one."""
        for module in self.imports:
            importlib.import_module(module)
        return gymnasium.make(self.id, **self.kwargs)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that every process that makes one imports."""
        module, colon, _ = self.id.partition(":")
        return (*self.imports, module) if colon else self.imports


@dataclass(frozen=True)
class WorkerConfig:
    """What all episodes of a worker share; pickled by cloudpickle.

    Attributes:
        make_env: makes the environment.
        n_obs_steps: observation steps that the policy sees, at least 1.
        action_spec: of the environment's actions; needed with guards.
        guards: the response to each fault. None: actions are sent as they are, and a policy that fails ends the
            episode as crashed; only for :class:`specpolicy.control.Lockstep`.
        rate_hz: ticks a second.
        max_ticks: end an episode after so many ticks, even if the environment would go on.
        limits: of motion; need guards. See :class:`specpolicy.control.MotionLimits`.
        max_delay: most actions under way that the policy continues; 0 if it is not delay-conditioned.
        make_views: makes what watches an episode where it is played, e.g. a recorder.

    Raises:
        ValueError: a number is out of range.
    """

    make_env: EnvFactory
    n_obs_steps: int
    action_spec: ActionSpec | None = None
    guards: Guards | None = None
    rate_hz: float = 20.0
    max_ticks: int | None = None
    limits: MotionLimits | None = None
    max_delay: int = 0
    make_views: MakeViews | None = None

    def __post_init__(self) -> None:
        check_integer("n_obs_steps", self.n_obs_steps, 1)
        if self.max_ticks is not None:
            check_integer("max_ticks", self.max_ticks, 1)


@dataclass(frozen=True)
class ResetRequest:
    """Begin an episode under simulated latency.

    Attributes:
        executor: what happens while the policy computes.
        latency: of an inference.
        key: which episode.
    """

    executor: Executor
    latency: Latency
    key: EpisodeKey


@dataclass(frozen=True)
class EpisodeCrash:
    """An episode ended by an exception.

    Attributes:
        error: which.
        trace: what happened before it; None if it did not begin.
    """

    error: str
    trace: EpisodeTrace | None


WorkerReply = InferenceRequest | EpisodeTrace | EpisodeCrash | WorkerError


class EnvWorker(Protocol):
    """Plays one episode at a time. Each ``send`` is followed by one ``receive``."""

    def send(self, request: ResetRequest | InferenceResult) -> None:
        """Begin an episode, or answer its request; returns at once if the worker has a process of its own."""

    def receive(self) -> WorkerReply:
        """Wait for the next request or the end of the episode. Nothing is raised."""
        ...

    def close(self) -> None:
        """Close the environment; the next :meth:`send` starts afresh."""


class EpisodeHandler:
    """Answers what is sent to an :class:`EnvWorker`, wherever that lives.

    Args:
        config: of the episodes. The environment is made at the first reset, and again after an exception of its own.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._env: gymnasium.Env[Any, Any] | None = None
        self._steps: ControlCoroutine | None = None
        self._trace: EpisodeTrace | None = None

    def __call__(self, request: ResetRequest | InferenceResult) -> InferenceRequest | EpisodeTrace | EpisodeCrash:
        """Play on until an inference is needed or the episode ends."""
        try:
            if isinstance(request, ResetRequest):
                self._steps = self._begin(request)
                return next(self._steps)
            if self._steps is None:
                raise RuntimeError("a result was sent before an episode was begun")
            future: Future[InferenceResult] = Future()
            future.set_result(request)
            return self._steps.send(future)
        except StopIteration as end:
            trace: EpisodeTrace = end.value
            return trace
        except InferenceFailed as error:
            return EpisodeCrash(f"policy: {error}", self._trace)
        except (Exception, SystemExit) as error:  # an environment that calls sys.exit ends its episode, not the run
            return self._crashed(error)

    def close(self) -> None:
        """Close the environment."""
        env, self._env, self._steps = self._env, None, None
        if env is not None:
            env.close()

    def begin(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`specpolicy.control.viewers.View`: remember the trace, in case the episode crashes."""
        self._trace = trace

    def tick(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`specpolicy.control.viewers.View`."""

    def end(self, trace: EpisodeTrace) -> None:
        """See :class:`specpolicy.control.viewers.View`."""

    def _begin(self, request: ResetRequest) -> ControlCoroutine:
        config, self._trace = self._config, None
        self._env = self._env or config.make_env()
        setup = ControlSetup(
            self._env,
            request.executor,
            SimulatedLatencyClock(config.rate_hz, request.latency),
            config.n_obs_steps,
            config.action_spec,
            config.guards,
            (self, *(config.make_views(request.key) if config.make_views is not None else ())),
            config.max_ticks,
            success_required=config.guards is None,
            limits=config.limits,
            max_delay=config.max_delay,
        )
        return control_steps(setup, request.key.seed, request.key.repeat)

    def _crashed(self, error: BaseException) -> EpisodeCrash:
        reason = format_exception(error)
        try:
            self.close()  # its state is unknown: the next episode gets a new environment
        except Exception as another:
            reason = f"{reason}; closing the environment failed too: {format_exception(another)}"
        return EpisodeCrash(reason, self._trace)


def close_environment(environment: gymnasium.Env[Any, Any] | EnvWorker) -> None:
    """Close an environment whose results are written: what it raises is a warning.

    Args:
        environment: itself, or its worker.
    """
    try:
        environment.close()
    except Exception as error:
        warnings.warn(f"closing an environment failed: {format_exception(error)}", stacklevel=2)


class EnvPool:
    """Environments in workers, kept from one set of episodes to the next. Use it as a context manager.

    Args:
        config: of the episodes.
        num_envs: episodes that run side by side, at least 1.
        timeout_s: a worker that takes longer over one request, or over starting the simulator, is killed and its
            episode counted as crashed.
        in_process: run them in this process, one after another; by default only a single one. For cheap environments
            and for debugging: no worker can die alone, and ``timeout_s`` has no effect.

    Attributes:
        workers: ``num_envs`` of them.

    Raises:
        ValueError: ``num_envs`` is below 1.

    Example:
        >>> config = WorkerConfig(MakeEnv("specpolicy_envs:specpolicy/Square-v0"), n_obs_steps=2)  # doctest: +SKIP
        >>> with EnvPool(config, num_envs=8) as pool:  # doctest: +SKIP
        ...     results = list(run_episodes(policy, {"ddpm": sampler}, pool, specs, task="square"))
    """

    def __init__(
        self, config: WorkerConfig, num_envs: int = 1, timeout_s: float = 600.0, in_process: bool | None = None
    ) -> None:
        num_envs = check_integer("num_envs", num_envs, 1)
        self.workers: list[EnvWorker] = make_workers(
            partial(EpisodeHandler, config),
            num_envs,
            timeout_s,
            "the environment's process",
            num_envs == 1 if in_process is None else in_process,
            (__name__, *getattr(config.make_env, "modules", ())),
        )

    def close(self) -> None:
        """Close every environment and end every worker; what an environment raises then is a warning."""
        for worker in self.workers:
            close_environment(worker)

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
