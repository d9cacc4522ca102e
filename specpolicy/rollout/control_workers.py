"""Places in which an episode of a control loop runs: in this process, or in a worker of its own."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import gymnasium

from specpolicy.control.action_space import ActionSpec
from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import Executor
from specpolicy.control.inference import InferenceRequest, InferenceResult
from specpolicy.control.latency import Latency
from specpolicy.control.loop import ControlCoroutine, ControlSetup, control_steps
from specpolicy.control.safety import Guards
from specpolicy.control.trace import EpisodeTrace
from specpolicy.rollout.env_worker import MakeEnv
from specpolicy.rollout.workers import SubprocessWorker, WorkerError
from specpolicy.utils.errors import format_exception


@dataclass(frozen=True)
class WorkerConfig:
    """What every seat has; pickled.

    Attributes:
        make_env: makes the environment.
        meaning: of its actions.
        guards: see :class:`Guards`.
        rate_hz: ticks a second.
        n_obs_steps: observation steps that the policy sees.
        max_ticks: end an episode after so many ticks, even if the environment would go on.
    """

    make_env: MakeEnv
    meaning: ActionSpec
    guards: Guards
    rate_hz: float
    n_obs_steps: int
    max_ticks: int | None = None


@dataclass(frozen=True)
class ResetRequest:
    """Begin an episode under a charged clock."""

    executor: Executor
    latency: Latency
    seed: int
    repeat: int


class ControlWorker(Protocol):
    """Runs one episode at a time. Each ``send`` is followed by one ``receive``."""

    def send(self, request: ResetRequest | InferenceResult) -> None:
        """Begin an episode, or answer its question; returns at once if the seat has a process of its own."""

    def receive(self) -> InferenceRequest | EpisodeTrace | WorkerError:
        """The next question, or the end. Failures are answers: nothing is raised."""
        ...

    def close(self) -> None:
        """Let go of everything; the seat can be used again and then starts afresh."""


class ControlEnvWorker:
    """Plays the world's and the loop's part of an episode, from question to question."""

    def __init__(self, stage: WorkerConfig) -> None:
        self._stage = stage
        self._env: gymnasium.Env[Any, Any] | None = None
        self._conversation: ControlCoroutine | None = None

    def __call__(self, request: ResetRequest | InferenceResult) -> InferenceRequest | EpisodeTrace:
        """The next question, or the account. What is raised ends the episode, and the environment with it."""
        try:
            if isinstance(request, ResetRequest):
                self._conversation = self._begin(request)
                return next(self._conversation)
            if self._conversation is None:
                raise RuntimeError("an answer came before an episode was begun")
            future: Future[InferenceResult] = Future()
            future.set_result(request)
            return self._conversation.send(future)
        except StopIteration as end:
            account: EpisodeTrace = end.value
            return account
        except BaseException:
            self.close()  # its state is unknown
            raise

    def close(self) -> None:
        """Discard the environment."""
        env, self._env, self._conversation = self._env, None, None
        if env is not None:
            env.close()

    def _begin(self, request: ResetRequest) -> ControlCoroutine:
        stage = self._stage
        if self._env is None:
            self._env = stage.make_env()
        clock = SimulatedLatencyClock(stage.rate_hz, request.latency)
        robot = ControlSetup(
            self._env, stage.meaning, request.executor, clock, stage.guards, stage.n_obs_steps,
            max_ticks=stage.max_ticks,
        )  # fmt: skip
        return control_steps(robot, request.seed, request.repeat)


class LocalControlWorker:
    """A seat in this process."""

    def __init__(self, stage: WorkerConfig) -> None:
        self._performer = ControlEnvWorker(stage)
        self._answer: InferenceRequest | EpisodeTrace | WorkerError = WorkerError("nothing was asked for")

    def send(self, request: ResetRequest | InferenceResult) -> None:
        """Do it here and now."""
        try:
            self._answer = self._performer(request)
        except Exception as error:
            self._answer = WorkerError(format_exception(error))

    def receive(self) -> InferenceRequest | EpisodeTrace | WorkerError:
        """What came of it."""
        return self._answer

    def close(self) -> None:
        """Close the environment."""
        self._performer.close()


def make_control_workers(stage: WorkerConfig, count: int, timeout_s: float = 600.0) -> list[ControlWorker]:
    """``count`` seats: one is in this process, several have one each.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"num_envs must be at least 1, got {count}")
    if count == 1:
        return [LocalControlWorker(stage)]
    warm_up = partial(_make_and_close, stage.make_env)
    return [
        SubprocessWorker(partial(ControlEnvWorker, stage), timeout_s, "the environment's process", warm_up)
        for _ in range(count)
    ]


def _make_and_close(make_env: MakeEnv) -> None:
    make_env().close()
