"""Workers that answer requests: in this process, or in processes of their own whose death is an answer, too."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, Protocol

from gymnasium.vector.utils import CloudpickleWrapper

from specpolicy.utils.errors import format_exception

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class WorkerError:
    """A request failed.

    Attributes:
        error: why.
        died: the worker's process ended, by itself or because it took too long.
    """

    error: str
    died: bool = False


class RequestHandler(Protocol):
    """Answers the requests of a worker, in whichever process it lives."""

    def __call__(self, request: Any, /) -> Any:
        """Return the answer; what is raised becomes a :class:`WorkerError`."""

    def close(self) -> None:
        """Close what is open."""


class LocalWorker:
    """A worker in this process. Each ``send`` is followed by one ``receive``.

    Args:
        make_handler: makes what answers, at the first request.
    """

    def __init__(self, make_handler: Callable[[], RequestHandler]) -> None:
        self._make_handler = make_handler
        self._handler: RequestHandler | None = None
        self._answer: Any = WorkerError("nothing was requested")

    def send(self, request: Any) -> None:
        """Compute the answer."""
        try:
            self._handler = self._handler or self._make_handler()
            self._answer = self._handler(request)
        except (Exception, SystemExit) as error:  # a simulator that leaves must not take its evaluation along
            self._answer = WorkerError(format_exception(error))

    def receive(self) -> Any:
        """Return the answer."""
        return self._answer

    def close(self) -> None:
        """Close the handler; the next request makes another."""
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.close()


class SubprocessWorker:
    """A process with one thread, started when first needed and again after it died.

    Each ``send`` is followed by one ``receive``.

    Args:
        make_handler: makes what answers, in the process and at its first request; pickled by cloudpickle.
        timeout_s: a process that takes longer over one request is killed.
        name: what its crashes call it.
        preload: modules that processes like this one share: they are imported once, before the processes are forked.
    """

    def __init__(
        self,
        make_handler: Callable[[], RequestHandler],
        timeout_s: float,
        name: str = "a worker",
        preload: Sequence[str] = (),
    ) -> None:
        self._make_handler, self.timeout_s, self._name, self._preload = make_handler, timeout_s, name, preload
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
        assert self._pipe is not None, "nothing was requested"
        return self._pipe

    @property
    def deadline(self) -> float:
        """When the process is out of time for its request, on the clock ``time.monotonic``."""
        return self._asked_at + self.timeout_s

    def send(self, request: Any) -> None:
        """Send the request, to a new process if there is none; returns at once."""
        if self._process is None:
            self._start()
        assert self._pipe is not None
        self._waiting, self._asked_at = True, time.monotonic()
        with suppress(OSError):  # the process may be gone: receive() finds out and says so
            self._pipe.send(request)

    def receive(self) -> Any:
        """Wait for the answer.

        Returns:
            The answer; a :class:`WorkerError` if the process died or took too long. The next request then starts
            another.
        """
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
        return WorkerError(reason, died=True)

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

    def _start(self) -> None:
        self._pipe, remote = multiprocessing.Pipe()
        pickled = pickle.dumps(CloudpickleWrapper(self._make_handler))
        context = _start_method(self._preload)
        with _one_thread(), _without_main(), _sigint_blocked():
            self._process = context.Process(target=_serve, args=(remote, pickled), daemon=True)
            self._process.start()
        remote.close()


def make_workers(
    make_handler: Callable[[], RequestHandler],
    count: int,
    timeout_s: float = 600.0,
    name: str = "a worker",
    in_process: bool = False,
    preload: Sequence[str] = (),
) -> list[Any]:
    """Make workers of one kind.

    Args:
        make_handler: makes what answers their requests; pickled by cloudpickle unless ``in_process``.
        count: how many.
        timeout_s: see :class:`SubprocessWorker`.
        name: likewise.
        in_process: they live in this process.
        preload: see :class:`SubprocessWorker`.

    Returns:
        ``count`` of :class:`LocalWorker` or :class:`SubprocessWorker`.
    """
    if in_process:
        return [LocalWorker(make_handler) for _ in range(count)]
    return [SubprocessWorker(make_handler, timeout_s, name, preload) for _ in range(count)]


def run_requests(
    workers: Sequence[LocalWorker | SubprocessWorker], next_request: Callable[[frozenset[Any]], Any], lives: int = 1
) -> Iterator[tuple[Any, Any]]:
    """Have requests answered that do not depend on each other, by whichever worker is free.

    Args:
        workers: at least one, all alike.
        next_request: given the requests under way, the next one (hashable); None if there is none for now. Asked again
            after each answer; none under way and no next one is the end.
        lives: a request at which a worker died is tried again until so many have died in a row.

    Yields:
        Requests with their answers, in the order in which they end.
    """
    idle, busy, deaths = list(workers), dict[Any, LocalWorker | SubprocessWorker](), Counter[Any]()
    while True:
        while idle and (request := next_request(frozenset(busy))) is not None:
            busy[request] = idle.pop()
            busy[request].send(request)
        if not busy:
            return
        for request in _answered(busy):
            worker = busy.pop(request)
            answer = worker.receive()
            if isinstance(answer, WorkerError) and answer.died:
                deaths[request] += 1
                if deaths[request] < lives:
                    busy[request] = worker
                    worker.send(request)
                    continue
            idle.append(worker)
            yield request, answer


def _answered(busy: Mapping[Any, LocalWorker | SubprocessWorker]) -> list[Any]:
    """Requests whose worker has answered, died, or run out of time; waits for the first."""
    processes = {request: worker for request, worker in busy.items() if isinstance(worker, SubprocessWorker)}
    if len(processes) < len(busy):
        return [request for request in busy if request not in processes]
    patience = min(worker.deadline for worker in processes.values()) - time.monotonic()
    answered = set(wait([worker.connection for worker in processes.values()], max(0.0, patience)))
    now = time.monotonic()
    return [request for request, worker in processes.items() if worker.connection in answered or worker.deadline <= now]


def _start_method(preload: Sequence[str]) -> Any:
    """Forked from one clean server that has imported what all need; where that cannot be, started afresh."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    return context


def _serve(pipe: Connection, pickled: bytes) -> None:
    """A worker's life: answer requests until the other end closes, be it on purpose or by death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    handler: RequestHandler | None = None
    try:
        while True:
            request = pipe.recv()
            try:
                if handler is None:
                    handler = pickle.loads(pickled).fn()
                answer = handler(request)
            except Exception as error:
                answer = WorkerError(format_exception(error))
            pipe.send(answer)
    except (EOFError, OSError):
        pass
    finally:
        if handler is not None:
            handler.close()


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
def _sigint_blocked() -> Iterator[None]:
    """Processes inherit that Ctrl-C is blocked, so that none prints a traceback in its first moments."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it unblocks SIGINT again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
