"""Clocks of a control loop: simulated latency, and the wall clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from specpolicy.control.inference import InferenceKind, InferenceResult
from specpolicy.control.latency import Constant, Latency
from specpolicy.control.trace import InferenceRecord
from specpolicy.utils.errors import format_exception


@dataclass
class Running:
    """A computation under way.

    Attributes:
        inference: its entry in the trace; the clock sets ``ended_s`` when it is known.
        future: what comes of it.
        ready: first tick at which it is there, where the clock knows that beforehand.
    """

    inference: InferenceRecord
    future: Future[InferenceResult]
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

    def launch(self, compute: Callable[[], InferenceResult]) -> Future[InferenceResult]:
        """Have something computed, in whichever way lets this clock go on."""
        ...

    def begin(self, inference: InferenceRecord, future: Future[InferenceResult]) -> Running:
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

    def wait_within(self, tick: int, share: float, until: float) -> bool:
        """Wait until a share of the time from ``tick`` to the next has gone by; False if the share ``until`` has."""
        ...

    def pause(self, seconds: float) -> None:
        """Let some time go by."""
        ...

    def finish(self, wait: bool = True) -> None:
        """End the episode; with ``wait``, when what is still being computed has ended."""
        ...


def attempt(compute: Callable[[], InferenceResult]) -> InferenceResult:
    """Compute; an exception, or anything but a result, becomes a result with an error.

    Args:
        compute: an inference.

    Returns:
        Its result.
    """
    begun = perf_counter()
    try:
        result: Any = compute()
    except Exception as error:
        return InferenceResult(error=format_exception(error), seconds=perf_counter() - begun)
    if isinstance(result, InferenceResult):
        return result
    error_text = f"the policy gave {type(result).__name__}; expected an InferenceResult"
    return InferenceResult(error=error_text, seconds=perf_counter() - begun)


_DOMAIN = 0xC4A26ED  # keeps the latencies' streams apart from others made from the same seeds


class SimulatedLatencyClock:
    """The world goes on for ceil(latency · rate) ticks while the policy computes, however long that takes here.

    A computation is therefore done in one piece when it is begun, its outcome is handed over when its time has come,
    and the same seeds give the same episode on any machine.

    The latency is that of a whole inference, and of a draft, which is one. Finishing a draft takes its share: its own
    network evaluations (NFE) over the mean of the episode's whole inferences so far (there always is one: the first). A
    measured latency counts as measured. Every network evaluation counts the same, however many rows it has.

    Args:
        rate_hz: ticks a second.
        latency: of a whole inference.
    """

    def __init__(self, rate_hz: float = 20.0, latency: Latency | None = None) -> None:
        if not 0 < rate_hz < float("inf"):
            raise ValueError(f"a rate of {rate_hz} Hz; expected a positive number")
        self.rate_hz = float(rate_hz)
        self.latency = latency if latency is not None else Constant(0.0)
        self.start(0, 0)

    def start(self, seed: int, repeat: int) -> None:
        """See :class:`Clock`; latencies are drawn from a stream of their own, the same for every executor."""
        self._random = np.random.default_rng(np.random.SeedSequence([_DOMAIN, seed, repeat]))
        self._tick, self._waited = 0, 0.0
        self._whole: list[int] = []

    def now(self) -> float:
        """See :class:`Clock`: the time of the present tick, for nothing but inference takes time."""
        return self.due(self._tick)

    def due(self, tick: int) -> float:
        """See :class:`Clock`."""
        return tick / self.rate_hz + self._waited

    def launch(self, compute: Callable[[], InferenceResult]) -> Future[InferenceResult]:
        """See :class:`Clock`: computed here and now."""
        future: Future[InferenceResult] = Future()
        future.set_result(attempt(compute))
        return future

    def begin(self, inference: InferenceRecord, future: Future[InferenceResult]) -> Running:
        """See :class:`Clock`; the future must have its result. Raises ``ValueError`` as :class:`Measured` does."""
        result = future.result()
        seconds = self.latency.seconds(self._random, result.seconds, self._share(inference.kind, result.passes))
        inference.ended_s = inference.begun_s + seconds
        # a billionth of a tick is rounding: 0.1 s at 20 Hz are two ticks, not three
        return Running(inference, future, self._tick + math.ceil(seconds * self.rate_hz - 1e-9))

    def done(self, running: Running, tick: int) -> bool:
        """See :class:`Clock`."""
        return running.ready is not None and tick >= running.ready

    def wait(self, running: Running, tick: int) -> None:
        """See :class:`Clock`."""
        assert running.inference.ended_s is not None
        self._waited += max(running.inference.ended_s - self.now(), 0.0)
        running.ready = tick

    def next_tick(self, tick: int) -> int:
        """See :class:`Clock`."""
        self._tick = tick + 1
        return self._tick

    def wait_within(self, tick: int, share: float, until: float) -> bool:
        """See :class:`Clock`: never late."""
        return True

    def pause(self, seconds: float) -> None:
        """See :class:`Clock`: simulated time does not go by."""

    def finish(self, wait: bool = True) -> None:
        """See :class:`Clock`; nothing is ever being computed."""

    def _share(self, kind: InferenceKind, passes: int | None) -> float:
        if kind is InferenceKind.WHOLE and passes:
            self._whole.append(passes)
        if kind is not InferenceKind.FINISH or passes is None or not self._whole:
            return 1.0
        return passes / float(np.mean(self._whole))


class RealTimeClock:
    """Deadlines at begin + n / rate on the monotonic clock: a late tick moves none of the next, so nothing drifts.

    When a tick comes so late that further deadlines have passed, these are skipped, and the number of the present tick
    says so: a chunk that is aligned in time goes on with the action that is due now.

    Inference runs in a thread of its own. A network that holds the interpreter lock for long shows as jitter.

    Args:
        rate_hz: ticks a second.
        monotonic, sleep: as in ``time``; for tests.
    """

    def __init__(
        self,
        rate_hz: float = 20.0,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not 0 < rate_hz < float("inf"):
            raise ValueError(f"a rate of {rate_hz} Hz; expected a positive number")
        self.rate_hz = float(rate_hz)
        self._monotonic, self._sleep = monotonic, sleep
        self._thread: ThreadPoolExecutor | None = None
        self._begun, self._waited = monotonic(), 0.0

    def start(self, seed: int, repeat: int) -> None:
        """See :class:`Clock`; nothing here is random."""
        self.finish()
        self._thread = ThreadPoolExecutor(1, "inference")
        self._begun, self._waited = self._monotonic(), 0.0

    def now(self) -> float:
        """See :class:`Clock`."""
        return self._monotonic() - self._begun

    def due(self, tick: int) -> float:
        """See :class:`Clock`."""
        return tick / self.rate_hz + self._waited

    def launch(self, compute: Callable[[], InferenceResult]) -> Future[InferenceResult]:
        """See :class:`Clock`. Raises ``RuntimeError`` before :meth:`start`."""
        if self._thread is None:
            raise RuntimeError("nothing can be computed before the clock's start()")
        return self._thread.submit(attempt, compute)

    def begin(self, inference: InferenceRecord, future: Future[InferenceResult]) -> Running:
        """See :class:`Clock`."""

        def ended(_: Future[InferenceResult]) -> None:
            inference.ended_s = self.now()

        future.add_done_callback(ended)
        return Running(inference, future)

    def done(self, running: Running, tick: int) -> bool:
        """See :class:`Clock`."""
        return running.future.done()

    def wait(self, running: Running, tick: int) -> None:
        """See :class:`Clock`."""
        since = running.inference.begun_s if running.inference.tick == tick else self.now()
        running.future.result()
        self._waited += self.now() - since

    def next_tick(self, tick: int) -> int:
        """See :class:`Clock`."""
        ahead = self.due(tick + 1) - self.now()
        if ahead > 0:
            self._sleep(ahead)
            return tick + 1
        return max(tick + 1, math.floor((self.now() - self._waited) * self.rate_hz))

    def wait_within(self, tick: int, share: float, until: float) -> bool:
        """See :class:`Clock`."""
        begun, now = self.due(tick), self.now()
        if now >= begun + until / self.rate_hz:
            return False
        self.pause(begun + share / self.rate_hz - now)
        return True

    def pause(self, seconds: float) -> None:
        """See :class:`Clock`."""
        if seconds > 0:
            self._sleep(seconds)

    def finish(self, wait: bool = True) -> None:
        """See :class:`Clock`."""
        if self._thread is not None:
            self._thread.shutdown(wait, cancel_futures=True)
            self._thread = None
