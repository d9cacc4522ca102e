"""Several workers, each with a stage of its own, and what happens when one dies."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.datasets.robomimic import GYM_ENVIRONMENT, ROBOSUITE_ENVIRONMENT, Attribute, Episode
from specpolicy.rollout.workers import SubprocessWorker, WorkerError
from specpolicy.utils.errors import format_exception


def environment_arguments(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """robomimic's ``env_args`` of an unwrapped environment.

    Args:
        env: one whose ``task`` gives ``robosuite_arguments()`` is described as the robosuite environment that it
            wraps; any other as a gymnasium environment, by its id.
    """
    describe = getattr(getattr(env, "task", None), "robosuite_arguments", None)
    if describe is not None:
        kwargs = dict(describe())
        name, version, kind = kwargs.pop("env_name"), metadata.version("robosuite"), ROBOSUITE_ENVIRONMENT
    else:
        spec = env.spec
        name, kwargs = (spec.id, dict(spec.kwargs)) if spec is not None else (type(env).__name__, {})
        version, kind = metadata.version("gymnasium"), GYM_ENVIRONMENT
    plain: dict[str, Any] = json.loads(
        json.dumps({"env_name": name, "env_version": version, "type": kind, "env_kwargs": kwargs})
    )
    return plain


def scene_xml(env: gymnasium.Env[Any, Any]) -> str | None:
    """The scene as MuJoCo's XML, None if it is not robosuite's.

    Paths of meshes and textures begin at the package ``robosuite``: robosuite puts its own folder in front when it
    loads them, and the text does not depend on where this machine keeps it.
    """
    robosuite = getattr(env, "robosuite", None)
    if robosuite is None:
        return None
    xml: str = robosuite.sim.model.get_xml()
    return re.sub(r'file="[^"]*/(robosuite/models/)', r'file="\1', xml)


class ExpertRollout(Protocol):
    """What an expert did in ``T`` steps. Row ``t`` is what was there before action ``t``, and what came of it."""

    @property
    def success(self) -> bool:
        """Whether it is worth learning from."""

    @property
    def failure(self) -> str | None:
        """Why the expert gave up, None if it did not."""

    @property
    def observations(self) -> Mapping[str, NDArray[Any]]:
        """What a policy would have seen, by key, shapes ``(T, ...)``."""

    @property
    def actions(self) -> NDArray[Any]:
        """What a policy should learn, shape ``(T, action dim)``."""

    @property
    def executed_actions(self) -> NDArray[Any]:
        """What was done, shape ``(T, action dim)``."""

    @property
    def taught(self) -> NDArray[Any]:
        """Whether a policy should learn the action, shape ``(T,)``."""

    @property
    def states(self) -> NDArray[Any]:
        """Simulator states, shape ``(T, n)``."""

    @property
    def rewards(self) -> NDArray[Any]:
        """Shape ``(T,)``."""

    @property
    def dones(self) -> NDArray[Any]:
        """Shape ``(T,)``."""


class ExpertPolicy(Protocol):
    """Plays the episode of a seed in an unwrapped environment; the same seed must give the same performance."""

    def __call__(self, env: Any, *, seed: int) -> ExpertRollout:
        """Play it."""


@dataclass(frozen=True)
class Attempt:
    """What came of a seed.

    Attributes:
        seed: which.
        episode: what was recorded, None if it failed.
        env_args: what robomimic makes the environment from.
        failure: why it failed.
    """

    seed: int
    episode: Episode | None = None
    env_args: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""


class ExpertWorker:
    """Answers a seed with an :class:`Attempt`. An exception of the expert's is a failed attempt.

    Args:
        make_env: makes the environment, at the first seed and after an exception.
        perform: plays in it.
        next_obs: record what was seen after each action, too; the last step is left out then.
        model_file: record the scene's XML with each episode.
    """

    def __init__(
        self, make_env: Callable[[], gymnasium.Env[Any, Any]], perform: ExpertPolicy, next_obs: bool, model_file: bool
    ) -> None:
        self._make_env, self._perform = make_env, perform
        self._next_obs, self._model_file = next_obs, model_file
        self._env: gymnasium.Env[Any, Any] | None = None

    def __call__(self, seed: int) -> Attempt:
        """Play one seed. Raises what making the environment raises."""
        env = self._env = self._env or self._make_env().unwrapped
        try:
            performance = self._perform(env, seed=seed)
            if not performance.success:
                return Attempt(seed, failure=performance.failure or "the task was not done at the end")
            return Attempt(seed, self._recorded(seed, performance, env), environment_arguments(env))
        except Exception as error:
            self.close()  # its state is unknown
            return Attempt(seed, failure=f"crashed: {format_exception(error)}")

    def close(self) -> None:
        """Close the environment; the next seed gets a new one."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _recorded(self, seed: int, performance: ExpertRollout, env: gymnasium.Env[Any, Any]) -> Episode:
        attributes: dict[str, Attribute] = {"seed": seed}
        xml = scene_xml(env) if self._model_file else None
        if xml is not None:
            attributes["model_file"] = xml
        now = slice(0, -1) if self._next_obs else slice(None)
        observations = {key: _single(values) for key, values in performance.observations.items()}
        return Episode(
            actions=_single(performance.actions)[now],
            observations={key: values[now] for key, values in observations.items()},
            others={
                "executed_actions": _single(performance.executed_actions)[now],
                "states": _single(performance.states)[now],
                "taught": np.asarray(performance.taught, dtype=np.uint8)[now],
                "rewards": _single(performance.rewards)[now],
                "dones": np.asarray(performance.dones, dtype=np.int64)[now],
            },
            next_observations={key: values[1:] for key, values in observations.items()} if self._next_obs else {},
            attributes=attributes,
        )


def _single(values: NDArray[Any]) -> NDArray[Any]:
    """Policies learn in single precision, and half of a double's bytes, all noise, would not be compressed."""
    return values.astype(np.float32) if np.issubdtype(values.dtype, np.floating) else values


class RecordingError(RuntimeError):
    """A recording cannot go on: its stage cannot be set, its workers die, or nothing succeeds."""


NextSeed = Callable[[frozenset[int]], int | None]
"""Given the seeds under way, the one to attempt next; None if there is none for now."""


class Crew:
    """Workers that attempt seeds side by side. Use it as a context manager, so that none outlives it.

    Args:
        make_stage: what each worker plays on; pickled by cloudpickle.
        workers: how many, at least 1.
        timeout_s: a worker that takes longer over one seed is killed.
        lives: a seed at which this many workers in a row have died ends the recording.
    """

    def __init__(self, make_stage: Callable[[], ExpertWorker], workers: int, timeout_s: float, lives: int = 3) -> None:
        self._idle = [SubprocessWorker(make_stage, timeout_s, "a worker") for _ in range(workers)]
        self._busy: dict[int, SubprocessWorker] = {}
        self._lives = lives

    def attempts(self, next_seed: NextSeed) -> Iterator[Attempt]:
        """Attempts in the order in which they end.

        Args:
            next_seed: asked again after each attempt; nothing under way and no next seed is the end.

        Raises:
            RecordingError: the stage cannot be set, or workers die at the same seed again and again.
        """
        deaths = Counter[int]()
        while True:
            while self._idle and (seed := next_seed(frozenset(self._busy))) is not None:
                self._begin(seed, self._idle.pop())
            if not self._busy:
                return
            for seed in self._ready():
                worker = self._busy.pop(seed)
                answer: Attempt | WorkerError = worker.receive()
                if isinstance(answer, Attempt):
                    self._idle.append(worker)
                    yield answer
                elif worker.pid is not None:  # alive: it could not even begin
                    self._idle.append(worker)
                    raise RecordingError(f"the environment cannot be made: {answer.error}")
                else:
                    deaths[seed] += 1
                    if deaths[seed] == self._lives:
                        raise RecordingError(f"seed {seed}, {self._lives} times in a row: {answer.error}")
                    self._begin(seed, worker)

    def close(self) -> None:
        """End all workers, by force where they are in the middle of something."""
        for worker in [*self._idle, *self._busy.values()]:
            worker.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, seed: int, worker: SubprocessWorker) -> None:
        self._busy[seed] = worker
        worker.send(seed)

    def _ready(self) -> list[int]:
        """Seeds whose worker has answered, died, or run out of time; waits for the first."""
        patience = min(worker.deadline for worker in self._busy.values()) - time.monotonic()
        answered = set(wait([worker.connection for worker in self._busy.values()], max(0.0, patience)))
        now = time.monotonic()
        return [seed for seed, worker in self._busy.items() if worker.connection in answered or worker.deadline <= now]


class Alone:
    """No workers: attempts one seed after the other in this process. ``timeout_s`` has no place here."""

    def __init__(self, make_stage: Callable[[], ExpertWorker]) -> None:
        self._stage = make_stage()

    def attempts(self, next_seed: NextSeed) -> Iterator[Attempt]:
        """Attempts in the order of their seeds; raises :class:`RecordingError` if the environment cannot be made."""
        while (seed := next_seed(frozenset())) is not None:
            try:
                attempt = self._stage(seed)
            except Exception as error:
                raise RecordingError(f"the environment cannot be made: {format_exception(error)}") from error
            yield attempt

    def __enter__(self) -> Alone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.close()
