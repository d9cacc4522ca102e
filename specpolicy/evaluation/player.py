"""The environment's side of an episode: plays action chunks, remembers the observation history."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.history import History, Window

EnvFactory = Callable[[], "gymnasium.Env[Any, Any]"]


@dataclass(frozen=True)
class MakeEnv:
    """A gymnasium environment by name, made where it is needed: also in a fresh process.

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


@dataclass
class Segment:
    """What came of a reset or of an action chunk.

    Attributes:
        window: the last observations, ``{name: (observation_horizon, dim)}``, the present step last.
        reward: summed over the segment.
        steps: environment steps played; 0 after a reset.
        ended: the environment terminated or truncated.
        success: ``info["success"]`` was true at some step of the segment.
        frames: rendered images ``(height, width, 3)``, one a step and one at reset, if the player captures them.
    """

    window: Window
    reward: float = 0.0
    steps: int = 0
    ended: bool = False
    success: bool = False
    frames: list[NDArray[np.uint8]] = field(default_factory=list)


class EpisodePlayer:
    """One environment and the observation history of the episode it is in.

    Args:
        make_env: makes the environment; called at the first reset and again after :meth:`close`.
        observation_horizon: observation steps in a window; at reset the first one fills it.
        max_steps: end an episode after so many steps even if the environment would go on.
        capture: render every step (the environment must have ``render_mode="rgb_array"``).
    """

    def __init__(
        self, make_env: EnvFactory, observation_horizon: int, max_steps: int | None = None, capture: bool = False
    ) -> None:
        if observation_horizon < 1:
            raise ValueError(f"observation_horizon must be at least 1, got {observation_horizon}")
        self._make_env, self._max_steps, self._capture = make_env, max_steps, capture
        self._horizon = observation_horizon
        self._history: History | None = None
        self._env: gymnasium.Env[Any, Any] | None = None
        self._steps = 0

    def start(self, seed: int) -> Segment:
        """Begin the episode whose initial state ``seed`` fixes."""
        if self._env is None:
            self._env = self._make_env()
        observation, _ = self._env.reset(seed=seed)
        self._steps = 0
        self._history = History(self._horizon, observation)
        return Segment(self._history.window(), frames=self._frames())

    def play(self, actions: NDArray[np.floating]) -> Segment:
        """Execute ``actions``, shape ``(steps, action_dim)``, until they are used up or the episode ends."""
        if self._env is None or self._history is None:
            raise RuntimeError("play() was called before start()")
        segment = Segment({})
        for action in actions:
            observation, reward, terminated, truncated, info = self._env.step(_cast(action, self._env.action_space))
            self._steps += 1
            self._history.add(observation)
            segment.steps += 1
            segment.reward += float(reward)
            segment.success |= _success(info)
            segment.frames += self._frames()
            segment.ended = bool(terminated or truncated) or self._steps == self._max_steps
            if segment.ended:
                break
        segment.window = self._history.window()
        return segment

    def close(self) -> None:
        """Discard the environment; the next :meth:`start` makes a new one."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _frames(self) -> list[NDArray[np.uint8]]:
        if not self._capture or self._env is None:
            return []
        frame: Any = self._env.render()
        if not isinstance(frame, np.ndarray):
            raise RuntimeError(
                "the environment renders no images: make it with render_mode='rgb_array', and see that this machine can"
            )
        return [np.asarray(frame, dtype=np.uint8)]


def _cast(action: NDArray[np.floating], space: gymnasium.Space[Any]) -> Any:
    """The action in the dtype that the environment declares."""
    return action.astype(space.dtype) if space.dtype is not None else action


def _success(info: Mapping[str, Any]) -> bool:
    if "success" not in info:
        raise KeyError(
            "the environment's info has no 'success'; wrap it so that every step reports info['success'] as a bool"
        )
    return bool(info["success"])
