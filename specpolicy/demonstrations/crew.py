"""Several workers, each with a stage of its own, and what happens when one dies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from types import TracebackType

from specpolicy.workers import Crash, Worker, describe

from .stage import Attempt, Stage


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

    def __init__(self, make_stage: Callable[[], Stage], workers: int, timeout_s: float, lives: int = 3) -> None:
        self._idle = [Worker(make_stage, timeout_s, "a worker") for _ in range(workers)]
        self._busy: dict[int, Worker] = {}
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
                answer: Attempt | Crash = worker.receive()
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

    def _begin(self, seed: int, worker: Worker) -> None:
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

    def __init__(self, make_stage: Callable[[], Stage]) -> None:
        self._stage = make_stage()

    def attempts(self, next_seed: NextSeed) -> Iterator[Attempt]:
        """Attempts in the order of their seeds; raises :class:`RecordingError` if the environment cannot be made."""
        while (seed := next_seed(frozenset())) is not None:
            try:
                attempt = self._stage(seed)
            except Exception as error:
                raise RecordingError(f"the environment cannot be made: {describe(error)}") from error
            yield attempt

    def __enter__(self) -> Alone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.close()
