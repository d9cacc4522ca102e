"""Processes that answer requests, and whose death is an answer like any other."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from gymnasium.vector.utils import CloudpickleWrapper

from . import nursery

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Crash:
    """A request failed; ``error`` says why."""

    error: str


class Server(Protocol):
    """Lives in a worker and answers its requests."""

    def __call__(self, request: Any, /) -> Any:
        """The answer; what is raised becomes a :class:`Crash`."""

    def close(self) -> None:
        """Let go of everything."""


class Worker:
    """A process with one thread, started when first needed and again after it died.

    Each ``send`` is followed by one ``receive``.

    Args:
        make_server: makes what answers, in the process and at its first request; pickled by cloudpickle.
        timeout_s: a process that takes longer over one request is killed.
        name: what its crashes call it.
        warm_up: what processes like this one need only do once, together; see :func:`specpolicy.nursery.start`.
    """

    def __init__(
        self,
        make_server: Callable[[], Server],
        timeout_s: float,
        name: str = "a worker",
        warm_up: Callable[[], Any] | None = None,
    ) -> None:
        self._make_server, self.timeout_s, self._name, self._warm_up = make_server, timeout_s, name, warm_up
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._waiting = False
        self._asked_at = 0.0

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        return None if self._process is None else self._process.pid

    @property
    def connection(self) -> Connection:
        """Ready to read, for ``multiprocessing.connection.wait``, when :meth:`receive` would not block."""
        assert self._pipe is not None, "nothing was asked for"
        return self._pipe

    @property
    def deadline(self) -> float:
        """When the process is out of time for its request, on the clock ``time.monotonic``."""
        return self._asked_at + self.timeout_s

    def send(self, request: Any) -> None:
        """Send the request, to a new process if there is none; returns at once."""
        if self._process is None:
            self._spawn()
        assert self._pipe is not None
        self._waiting, self._asked_at = True, time.monotonic()
        with suppress(OSError):  # the process may be gone: receive() finds out and says so
            self._pipe.send(request)

    def receive(self) -> Any:
        """Wait for the answer; a process that died or takes too long is a :class:`Crash`; the next starts afresh."""
        assert self._pipe is not None and self._process is not None
        try:
            if self._pipe.poll(max(0.0, self.deadline - time.monotonic())):
                answer = self._pipe.recv()
                self._waiting = False
                return answer
            reason = f"{self._name} gave no answer in {self.timeout_s:g} s and was killed"
        except (EOFError, OSError):
            self._process.join(5)
            reason = f"{self._name} died (exit code {self._process.exitcode}); its error output says why"
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
        self._pipe, remote = multiprocessing.Pipe()
        pickled = pickle.dumps(CloudpickleWrapper(self._make_server))
        with _one_thread():
            self._process = nursery.start(_serve, (remote, pickled), self._warm_up)
        remote.close()


def _serve(pipe: Connection, pickled: bytes) -> None:
    """A worker's life: answer requests until the other end closes, be it on purpose or by death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    server: Server | None = None
    try:
        while True:
            request = pipe.recv()
            try:
                if server is None:
                    server = pickle.loads(pickled).fn()
                answer = server(request)
            except Exception as error:
                answer = Crash(describe(error))
            pipe.send(answer)
    except (EOFError, OSError):
        pass
    finally:
        if server is not None:
            server.close()


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
