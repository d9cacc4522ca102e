"""The environments of an evaluation, kept from one sampler to the next: starting a simulator is slow."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.policies.observations import HistoryWindow, ObservationHistory
from specpolicy.rollout.workers import SubprocessWorker, WorkerError
from specpolicy.utils.errors import format_exception

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
class ChunkTransition:
    """What came of a reset or of an action chunk.

    Attributes:
        window: the last observations, ``{name: (n_obs_steps, dim)}``, the present step last.
        reward: summed over the segment.
        steps: environment steps played; 0 after a reset.
        ended: the environment terminated or truncated.
        success: ``info["success"]`` was true at some step of the segment.
        frames: rendered images ``(height, width, 3)``, one a step and one at reset, if the player captures them.
    """

    window: HistoryWindow
    reward: float = 0.0
    steps: int = 0
    ended: bool = False
    success: bool = False
    frames: list[NDArray[np.uint8]] = field(default_factory=list)


class EpisodePlayer:
    """One environment and the observation history of the episode it is in.

    Args:
        make_env: makes the environment; called at the first reset and again after :meth:`close`.
        n_obs_steps: observation steps in a window; at reset the first one fills it.
        max_steps: end an episode after so many steps even if the environment would go on.
        capture: render every step (the environment must have ``render_mode="rgb_array"``).
    """

    def __init__(
        self, make_env: EnvFactory, n_obs_steps: int, max_steps: int | None = None, capture: bool = False
    ) -> None:
        if n_obs_steps < 1:
            raise ValueError(f"n_obs_steps must be at least 1, got {n_obs_steps}")
        self._make_env, self._max_steps, self._capture = make_env, max_steps, capture
        self._horizon = n_obs_steps
        self._history: ObservationHistory | None = None
        self._env: gymnasium.Env[Any, Any] | None = None
        self._steps = 0

    def start(self, seed: int) -> ChunkTransition:
        """Begin the episode whose initial state ``seed`` fixes."""
        if self._env is None:
            self._env = self._make_env()
        observation, _ = self._env.reset(seed=seed)
        self._steps = 0
        self._history = ObservationHistory(self._horizon, observation)
        return ChunkTransition(self._history.window(), frames=self._frames())

    def play(self, actions: NDArray[np.floating]) -> ChunkTransition:
        """Execute ``actions``, shape ``(steps, action_dim)``, until they are used up or the episode ends."""
        if self._env is None or self._history is None:
            raise RuntimeError("play() was called before start()")
        segment = ChunkTransition({})
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


@dataclass(frozen=True)
class Start:
    """Begin the episode of ``seed``."""

    seed: int


@dataclass(frozen=True)
class PlayChunk:
    """Execute ``actions``, shape ``(steps, action_dim)``."""

    actions: NDArray[np.floating]


@dataclass(frozen=True)
class PlayerSettings:
    """Arguments of :class:`EpisodePlayer`."""

    make_env: EnvFactory
    n_obs_steps: int
    max_steps: int | None = None


class EnvWorker(Protocol):
    """Runs one episode at a time. Each ``send`` is followed by one ``receive``."""

    def send(self, request: Start | PlayChunk) -> None:
        """Ask for something; returns at once if the slot has a process of its own."""

    def receive(self) -> ChunkTransition | WorkerError:
        """Wait for the answer. Failures are answers: nothing is raised."""
        ...

    def close(self) -> None:
        """Let go of everything; the slot can be used again and then starts afresh."""


class LocalEnvWorker:
    """A slot in this process."""

    def __init__(self, settings: PlayerSettings) -> None:
        self._player = EpisodePlayer(settings.make_env, settings.n_obs_steps, settings.max_steps)
        self._answer: ChunkTransition | WorkerError = WorkerError("nothing was asked for")

    def send(self, request: Start | PlayChunk) -> None:
        """Do it here and now."""
        self._answer = _answer(self._player, request)

    def receive(self) -> ChunkTransition | WorkerError:
        """What came of it."""
        return self._answer

    def close(self) -> None:
        """Close the environment."""
        self._player.close()


class SubprocessEnvWorker(SubprocessWorker):
    """A slot in a spawned process with one thread, started when first needed and again after it died.

    Args:
        settings: what to play; the environment factory is pickled.
        timeout_s: a worker that takes longer over one request is killed.
    """

    def __init__(self, settings: PlayerSettings, timeout_s: float) -> None:
        warm_up = partial(_make_and_close, settings.make_env)
        super().__init__(partial(_PlayerServer, settings), timeout_s, "the environment's process", warm_up)


class _PlayerServer:
    def __init__(self, settings: PlayerSettings) -> None:
        self._player = EpisodePlayer(settings.make_env, settings.n_obs_steps, settings.max_steps)

    def __call__(self, request: Start | PlayChunk) -> ChunkTransition | WorkerError:
        return _answer(self._player, request)

    def close(self) -> None:
        self._player.close()


def _make_and_close(make_env: EnvFactory) -> None:
    make_env().close()


def _answer(player: EpisodePlayer, request: Start | PlayChunk) -> ChunkTransition | WorkerError:
    try:
        return player.start(request.seed) if isinstance(request, Start) else player.play(request.actions)
    except Exception as error:
        crash = WorkerError(format_exception(error))
    try:
        player.close()  # its state is unknown: the next episode gets a new environment
    except Exception as error:
        crash = WorkerError(f"{crash.error}; closing the environment failed too: {format_exception(error)}")
    return crash


class EnvPool:
    """``num_envs`` slots. Use it as a context manager, so that no worker outlives it.

    Args:
        make_env: makes one environment; picklable (by cloudpickle) unless it stays in this process.
        n_obs_steps: observation steps the policy sees.
        num_envs: episodes run side by side.
        max_steps: end episodes after so many steps even if the environment would go on.
        timeout_s: a worker that takes longer over one action chunk, or over starting the simulator, is killed and its
            episode counted as crashed.
        in_process: run them in this process, one after another; by default only a single one. For cheap environments
            and for debugging: no worker can die alone, and ``timeout_s`` is without effect.

    Example:
        >>> with EnvPool(MakeEnv("specpolicy_envs:specpolicy/Square-v0"), 2, num_envs=8) as pool:  # doctest: +SKIP
        ...     records = list(rollout(policy, sampler, pool, episode_keys("ddpm", range(100)), task="square"))
    """

    def __init__(
        self,
        make_env: EnvFactory,
        n_obs_steps: int,
        num_envs: int = 1,
        max_steps: int | None = None,
        timeout_s: float = 600.0,
        in_process: bool | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        settings = PlayerSettings(make_env, n_obs_steps, max_steps)
        local = num_envs == 1 if in_process is None else in_process
        self.slots: list[EnvWorker] = [
            LocalEnvWorker(settings) if local else SubprocessEnvWorker(settings, timeout_s) for _ in range(num_envs)
        ]

    def close(self) -> None:
        """Close every environment and end every worker."""
        for slot in self.slots:
            slot.close()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
