"""Simulated time in which inference costs what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from specpolicy.control.account import Job
from specpolicy.control.latency import Constant, Latency
from specpolicy.control.questions import Answer, Kind

from .clock import Running, attempt

_DOMAIN = 0xC4A26ED  # keeps the latencies' streams apart from others made from the same seeds


class ChargedClock:
    """The world goes on for ceil(latency · rate) ticks while the policy computes, however long that takes here.

    A computation is therefore done in one piece when it is begun, its outcome is handed over when its time has come,
    and the same seeds give the same episode on any machine.

    The latency is that of a whole inference, and of a draft, which is one. Finishing a draft is charged by its share in
    passes: its own passes over the mean of the whole inferences of the episode so far (there always is one: the first).
    A measured latency is charged as measured. Passes are all charged alike, however many rows they have.

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

    def launch(self, compute: Callable[[], Answer]) -> Future[Answer]:
        """See :class:`Clock`: computed here and now."""
        future: Future[Answer] = Future()
        future.set_result(attempt(compute))
        return future

    def begin(self, job: Job, future: Future[Answer]) -> Running:
        """See :class:`Clock`; the future must have its result. Raises ``ValueError`` as :class:`Measured` does."""
        answer = future.result()
        seconds = self.latency.seconds(self._random, answer.seconds, self._share(job.kind, answer.passes))
        job.ended_s = job.begun_s + seconds
        # a billionth of a tick is rounding: 0.1 s at 20 Hz are two ticks, not three
        return Running(job, future, self._tick + math.ceil(seconds * self.rate_hz - 1e-9))

    def done(self, running: Running, tick: int) -> bool:
        """See :class:`Clock`."""
        return running.ready is not None and tick >= running.ready

    def wait(self, running: Running, tick: int) -> None:
        """See :class:`Clock`."""
        assert running.job.ended_s is not None
        self._waited += max(running.job.ended_s - self.now(), 0.0)
        running.ready = tick

    def next_tick(self, tick: int) -> int:
        """See :class:`Clock`."""
        self._tick = tick + 1
        return self._tick

    def finish(self) -> None:
        """See :class:`Clock`: nothing is ever left."""

    def _share(self, kind: Kind, passes: int | None) -> float:
        if kind is Kind.WHOLE and passes:
            self._whole.append(passes)
        if kind is not Kind.FINISH or passes is None or not self._whole:
            return 1.0
        return passes / float(np.mean(self._whole))
