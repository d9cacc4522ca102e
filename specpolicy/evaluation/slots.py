"""Places in which an episode can run: in this process, or in a worker of its own.

gymnasium's ``AsyncVectorEnv`` can reset single environments (``options={"reset_mask": …}``), but an exception in one
of them ends its worker and is raised for all, and every step is a round trip. Here a worker plays a whole action chunk
for one request, and a failure, be it an exception, a killed process or one that never answers, is an answer like any
other: it costs the episode it happened in and none of its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specpolicy.workers import Crash, Worker, describe

from .player import EnvFactory, EpisodePlayer, Segment


@dataclass(frozen=True)
class Start:
    """Begin the episode of ``seed``."""

    seed: int


@dataclass(frozen=True)
class Play:
    """Execute ``actions``, shape ``(steps, action_dim)``."""

    actions: NDArray[np.floating]


@dataclass(frozen=True)
class PlayerSettings:
    """Arguments of :class:`EpisodePlayer`."""

    make_env: EnvFactory
    observation_horizon: int
    max_steps: int | None = None


class Slot(Protocol):
    """Runs one episode at a time. Each ``send`` is followed by one ``receive``."""

    def send(self, request: Start | Play) -> None:
        """Ask for something; returns at once if the slot has a process of its own."""

    def receive(self) -> Segment | Crash:
        """Wait for the answer. Failures are answers: nothing is raised."""
        ...

    def close(self) -> None:
        """Let go of everything; the slot can be used again and then starts afresh."""


class LocalSlot:
    """A slot in this process."""

    def __init__(self, settings: PlayerSettings) -> None:
        self._player = EpisodePlayer(settings.make_env, settings.observation_horizon, settings.max_steps)
        self._answer: Segment | Crash = Crash("nothing was asked for")

    def send(self, request: Start | Play) -> None:
        """Do it here and now."""
        self._answer = _answer(self._player, request)

    def receive(self) -> Segment | Crash:
        """What came of it."""
        return self._answer

    def close(self) -> None:
        """Close the environment."""
        self._player.close()


class ProcessSlot(Worker):
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
        self._player = EpisodePlayer(settings.make_env, settings.observation_horizon, settings.max_steps)

    def __call__(self, request: Start | Play) -> Segment | Crash:
        return _answer(self._player, request)

    def close(self) -> None:
        self._player.close()


def _make_and_close(make_env: EnvFactory) -> None:
    make_env().close()


def _answer(player: EpisodePlayer, request: Start | Play) -> Segment | Crash:
    try:
        return player.start(request.seed) if isinstance(request, Start) else player.play(request.actions)
    except Exception as error:
        crash = Crash(describe(error))
    try:
        player.close()  # its state is unknown: the next episode gets a new environment
    except Exception as error:
        crash = Crash(f"{crash.error}; closing the environment failed too: {describe(error)}")
    return crash
