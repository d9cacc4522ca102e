"""Processes that answer requests, and whose death is an answer like any other."""

from __future__ import annotations

import base64
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, Protocol

from gymnasium.vector.utils import CloudpickleWrapper

from specpolicy.utils.errors import format_exception

_WARM_UP = "SPECPOLICY_NURSERY_WARM_UP"
_PATIENCE_S = 120
_works = sys.platform == "linux"  # elsewhere a process cannot count its threads, or cannot fork


def start(target: Callable[..., None], arguments: tuple[Any, ...], warm_up: Callable[[], Any] | None) -> BaseProcess:
    """Start a daemonic process with ``target(*arguments)``.

    Args:
        target: importable.
        arguments: can be pickled.
        warm_up: called in the nursery before anything is forked there; its failures are ignored, for the worker will
            meet and report them. None starts the process from nothing.
    """
    global _works
    with _without_main():
        if warm_up is not None and _works:
            multiprocessing.forkserver.set_forkserver_preload([__name__])
            forked = multiprocessing.get_context("forkserver").Process(target=target, args=arguments, daemon=True)
            try:
                with _told(warm_up):
                    forked.start()
                return forked
            except (EOFError, OSError):
                _works = False
        spawned = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
        spawned.start()
        return spawned


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep multiprocessing from running the main program's file again in each process: nothing there is needed."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _told(warm_up: Callable[[], Any]) -> Iterator[None]:
    """Processes that start inside the block find what to do in their environment; only a nursery looks for it."""
    os.environ[_WARM_UP] = base64.b64encode(pickle.dumps((sys.path, CloudpickleWrapper(warm_up)))).decode()
    try:
        yield
    finally:
        del os.environ[_WARM_UP]


def _warm_up() -> None:
    signal.alarm(_PATIENCE_S)  # ends the process
    try:
        told = base64.b64decode(os.environ.pop(_WARM_UP))
        sys.path, warm_up = pickle.loads(told)
        warm_up.fn()
    except Exception:  # the worker that needs it will fail in the same way, and say so
        pass
    signal.alarm(0)
    if len(os.listdir("/proc/self/task")) > 1:
        os._exit(1)


if _WARM_UP in os.environ:  # imported by multiprocessing, in the nursery
    _warm_up()


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class WorkerError:
    """A request failed; ``error`` says why."""

    error: str


class RequestHandler(Protocol):
    """Lives in a worker and answers its requests."""

    def __call__(self, request: Any, /) -> Any:
        """The answer; what is raised becomes a :class:`WorkerError`."""

    def close(self) -> None:
        """Let go of everything."""


class SubprocessWorker:
    """A process with one thread, started when first needed and again after it died.

    Each ``send`` is followed by one ``receive``.

    Args:
        make_server: makes what answers, in the process and at its first request; pickled by cloudpickle.
        timeout_s: a process that takes longer over one request is killed.
        name: what its crashes call it.
        warm_up: what processes like this one need only do once, together; see :func:`specpolicy.rollout.workers.start`.
    """

    def __init__(
        self,
        make_server: Callable[[], RequestHandler],
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
        """Wait for the answer; a process that died or is too slow is a :class:`WorkerError`, the next starts anew."""
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
        return WorkerError(reason)

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
            self._process = start(_serve, (remote, pickled), self._warm_up)
        remote.close()


def _serve(pipe: Connection, pickled: bytes) -> None:
    """A worker's life: answer requests until the other end closes, be it on purpose or by death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    server: RequestHandler | None = None
    try:
        while True:
            request = pipe.recv()
            try:
                if server is None:
                    server = pickle.loads(pickled).fn()
                answer = server(request)
            except Exception as error:
                answer = WorkerError(format_exception(error))
            pipe.send(answer)
    except (EOFError, OSError):
        pass
    finally:
        if server is not None:
            server.close()


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
