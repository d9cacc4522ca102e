"""What a control loop needs of a clock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from specpolicy.control.account import Job
from specpolicy.control.questions import Answer
from specpolicy.workers import describe


@dataclass
class Running:
    """A computation under way.

    Attributes:
        job: its entry in the account; the clock sets ``ended_s`` when it is known.
        future: what comes of it.
        ready: first tick at which it is there, where the clock knows that beforehand.
    """

    job: Job
    future: Future[Answer]
    ready: int | None = None


class Clock(Protocol):
    """Ticks at a fixed rate, and the time that computations take. Times are seconds since the episode's begin."""

    @property
    def rate_hz(self) -> float:
        """Ticks a second."""
        ...

    def start(self, seed: int, repeat: int) -> None:
        """An episode begins: tick 0 is now. The numbers fix the stream of whatever is random."""
        ...

    def now(self) -> float:
        """The time."""
        ...

    def due(self, tick: int) -> float:
        """When ``tick`` is due."""
        ...

    def launch(self, compute: Callable[[], Answer]) -> Future[Answer]:
        """Have something computed, in whichever way lets this clock go on."""
        ...

    def begin(self, job: Job, future: Future[Answer]) -> Running:
        """Take note that a computation has begun now."""
        ...

    def done(self, running: Running, tick: int) -> bool:
        """Whether it is there at ``tick``."""
        ...

    def wait(self, running: Running, tick: int) -> None:
        """Stop the world until it is there; later ticks are due later by that much."""
        ...

    def next_tick(self, tick: int) -> int:
        """Wait until the tick after ``tick`` is due. A later one if that has gone by: no tick is made up for."""
        ...

    def finish(self) -> None:
        """The episode is over: wait for what is still being computed."""
        ...


def attempt(compute: Callable[[], Answer]) -> Answer:
    """What comes of a computation; a policy that raises, though it should answer, is a failure like any other."""
    begun = perf_counter()
    try:
        return compute()
    except Exception as error:
        return Answer(error=describe(error), seconds=perf_counter() - begun)
