"""The wall clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from specpolicy.control.account import Job
from specpolicy.control.questions import Answer

from .clock import Running, attempt


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

    def launch(self, compute: Callable[[], Answer]) -> Future[Answer]:
        """See :class:`Clock`. Raises ``RuntimeError`` before :meth:`start`."""
        if self._thread is None:
            raise RuntimeError("nothing can be computed before the clock's start()")
        return self._thread.submit(attempt, compute)

    def begin(self, job: Job, future: Future[Answer]) -> Running:
        """See :class:`Clock`."""

        def ended(_: Future[Answer]) -> None:
            job.ended_s = self.now()

        future.add_done_callback(ended)
        return Running(job, future)

    def done(self, running: Running, tick: int) -> bool:
        """See :class:`Clock`."""
        return running.future.done()

    def wait(self, running: Running, tick: int) -> None:
        """See :class:`Clock`."""
        since = running.job.begun_s if running.job.tick == tick else self.now()
        running.future.result()
        self._waited += self.now() - since

    def next_tick(self, tick: int) -> int:
        """See :class:`Clock`."""
        ahead = self.due(tick + 1) - self.now()
        if ahead > 0:
            self._sleep(ahead)
            return tick + 1
        return max(tick + 1, math.floor((self.now() - self._waited) * self.rate_hz))

    def finish(self) -> None:
        """See :class:`Clock`."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
