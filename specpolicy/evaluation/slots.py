"""Places in which an episode can run: in this process, or in a worker of its own.

gymnasium's ``AsyncVectorEnv`` can reset single environments (``options={"reset_mask": …}``), but an exception in one
of them ends its worker and is raised for all, and every step is a round trip. Here a worker plays a whole action chunk
for one request, and a failure, be it an exception, a killed process or one that never answers, is an answer like any
other: it costs the episode it happened in and none of its neighbours.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper
from numpy.typing import NDArray

from .player import EnvFactory, EpisodePlayer, Segment

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Start:
    """Begin the episode of ``seed``."""

    seed: int


@dataclass(frozen=True)
class Play:
    """Execute ``actions``, shape ``(steps, action_dim)``."""

    actions: NDArray[np.floating]


@dataclass(frozen=True)
class Crash:
    """The request failed; the episode is over. ``error`` says why."""

    error: str


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


class ProcessSlot:
    """A slot in a spawned process with one thread, started when first needed and again after it died.

    Args:
        settings: what to play; the environment factory is pickled.
        timeout_s: a worker that takes longer over one request is killed.
    """

    def __init__(self, settings: PlayerSettings, timeout_s: float) -> None:
        self._settings, self.timeout_s = settings, timeout_s
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._waiting = False

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        return None if self._process is None else self._process.pid

    def send(self, request: Start | Play) -> None:
        """Send the request, to a new process if there is none."""
        if self._process is None:
            self._spawn()
        assert self._pipe is not None
        self._waiting = True
        with suppress(OSError):  # the worker may be gone: receive() finds out and says so
            self._pipe.send(request)

    def receive(self) -> Segment | Crash:
        """Wait for the answer; a process that died or takes too long is a crash, and the next one starts afresh."""
        assert self._pipe is not None and self._process is not None
        try:
            if self._pipe.poll(self.timeout_s):
                answer: Segment | Crash = self._pipe.recv()
                self._waiting = False
                return answer
            reason = f"the environment's process gave no answer in {self.timeout_s:g} s and was killed"
        except (EOFError, OSError):
            self._process.join(5)
            reason = f"the environment's process died (exit code {self._process.exitcode}); its error output says why"
        self.close()
        return Crash(reason)

    def close(self) -> None:
        """End the process, by force if it is in the middle of something."""
        if self._process is None or self._pipe is None:
            return
        if self._waiting:
            self._process.kill()
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None
        self._waiting = False

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, remote = context.Pipe()
        settings = self._settings
        factory = pickle.dumps(CloudpickleWrapper(settings.make_env))
        arguments = remote, factory, settings.observation_horizon, settings.max_steps
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with _one_thread():
            self._process.start()
        remote.close()


def _serve(pipe: Connection, pickled: bytes, observation_horizon: int, max_steps: int | None) -> None:
    """A worker's life: answer requests until the other end closes, be it on purpose or by death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    player: EpisodePlayer | None = None
    try:
        while True:
            request = pipe.recv()
            try:
                if player is None:
                    player = EpisodePlayer(pickle.loads(pickled).fn, observation_horizon, max_steps)
                answer = _answer(player, request)
            except Exception as error:
                answer = Crash(describe(error))
            pipe.send(answer)
    except (EOFError, OSError):
        pass
    finally:
        if player is not None:
            player.close()


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


def describe(error: BaseException) -> str:
    """Type, message and innermost place of an exception, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Numerical libraries read these variables when they load, so a child must be born with them."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
