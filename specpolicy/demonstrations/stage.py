"""Where an expert performs: in a worker, one seed at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.workers import describe

from .environment import environment_arguments, scene_xml
from .layout import Attribute, Episode


class Performance(Protocol):
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


class Perform(Protocol):
    """Plays the episode of a seed in an unwrapped environment; the same seed must give the same performance."""

    def __call__(self, env: Any, *, seed: int) -> Performance:
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


class Stage:
    """Answers a seed with an :class:`Attempt`. An exception of the expert's is a failed attempt.

    Args:
        make_env: makes the environment, at the first seed and after an exception.
        perform: plays in it.
        next_obs: record what was seen after each action, too; the last step is left out then.
        model_file: record the scene's XML with each episode.
    """

    def __init__(
        self, make_env: Callable[[], gymnasium.Env[Any, Any]], perform: Perform, next_obs: bool, model_file: bool
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
            return Attempt(seed, failure=f"crashed: {describe(error)}")

    def close(self) -> None:
        """Close the environment; the next seed gets a new one."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _recorded(self, seed: int, performance: Performance, env: gymnasium.Env[Any, Any]) -> Episode:
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
