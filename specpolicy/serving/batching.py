"""Requests of several sessions, gathered into batches that share their network passes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .engine import Answer, Job


@dataclass(frozen=True)
class Done:
    """An answer, and how long it took.

    Attributes:
        answer: what the engine said, an exception if it failed.
        batch: jobs in the batch.
        queue_ms: from :meth:`Batcher.submit` to the start of the batch.
        infer_ms: the batch.
    """

    answer: Answer | Exception
    batch: int
    queue_ms: float
    infer_ms: float


@dataclass(eq=False)
class _Waiting:
    job: Job
    since: float
    done: asyncio.Future[Done]


class Batcher:
    """Runs jobs in batches, in a thread of its own, so that the event loop goes on answering.

    While a batch runs, the next one gathers by itself. Once the engine is free, the oldest job leaves at the latest
    ``max_wait_s`` after it came; it leaves at once if the batch is full or nobody else could join.

    Args:
        run: the engine; see :meth:`Engine.run`.
        max_batch: most jobs of a batch. max_wait_s: longest wait for company, in seconds.
        company: how many sessions could have a job waiting at this moment.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], list[Answer | Exception]],
        max_batch: int,
        max_wait_s: float,
        company: Callable[[], int],
    ) -> None:
        self._run, self._max_batch, self._max_wait_s, self._company = run, max_batch, max_wait_s, company
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="specpolicy-engine")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run what is submitted."""
        self._task = asyncio.get_running_loop().create_task(self._run_batches())

    async def stop(self) -> None:
        """Let the running batch end, and run no other."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._thread.shutdown)

    def submit(self, job: Job) -> asyncio.Future[Done]:
        """Put a job into the queue. A future that is done before its turn takes the job out again."""
        waiting = _Waiting(job, time.perf_counter(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._changed.set()
        return waiting.done

    def look_again(self) -> None:
        """Company has changed: those who wait for it may not need to."""
        self._changed.set()

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            start = time.perf_counter()
            jobs = [each.job for each in batch]
            try:
                answers = await loop.run_in_executor(self._thread, self._run, jobs)
            except Exception as error:
                answers = [error] * len(batch)
            infer_ms = 1e3 * (time.perf_counter() - start)
            for each, answer in zip(batch, answers, strict=True):
                if not each.done.done():
                    each.done.set_result(Done(answer, len(batch), 1e3 * (start - each.since), infer_ms))

    async def _gather(self) -> None:
        """Return when a batch should leave: there is at least one job."""
        while True:
            self._waiting = deque(each for each in self._waiting if not each.done.done())
            self._changed.clear()
            patience: float | None = None
            if self._waiting:
                patience = self._waiting[0].since + self._max_wait_s - time.perf_counter()
                if len(self._waiting) >= min(self._max_batch, self._company()) or patience <= 0:
                    return
            try:
                async with asyncio.timeout(patience):
                    await self._changed.wait()
            except TimeoutError:
                continue
