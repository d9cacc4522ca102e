"""The queue: company where it costs little, never longer than the bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from specpolicy.serving.batching import Answer, Batcher, Job


class Recorder:
    """Says which batches came, and when."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.starts: list[float] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        self.batches.append([job.stream for job in jobs])
        self.starts.append(time.perf_counter())
        self.entered.set()
        self.gate.wait()
        if any(job.stream < 0 for job in jobs):
            raise RuntimeError("the engine broke")
        return [Answer(np.full((1, 1), job.stream, np.float32), 1, None) for job in jobs]


@asynccontextmanager
async def batcher(
    run: Any, company: Callable[[], int], max_batch: int = 4, wait_s: float = 60.0
) -> AsyncIterator[Batcher]:
    made = Batcher(run, max_batch, wait_s, company)
    made.start()
    try:
        yield made
    finally:
        await made.stop()


def job(number: int) -> Job:
    return Job({}, number)


async def held(run: Recorder, made: Batcher) -> asyncio.Future[Any]:
    """Make the engine busy with a job of its own."""
    run.gate.clear()
    first = made.submit(job(100))
    made.look_again()
    while not run.entered.is_set():
        await asyncio.sleep(0.001)
    return first


def test_nobody_waits_if_nobody_else_could_come() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), company=lambda: 1) as made:
            done = await asyncio.wait_for(made.submit(job(7)), 20)
            assert run.batches == [[7]] and done.batch == 1
            assert isinstance(done.answer, Answer) and done.answer.actions == 7

    asyncio.run(scene())


def test_all_who_are_here_leave_together_at_once() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), company=lambda: 3) as made:
            done = await asyncio.wait_for(asyncio.gather(*(made.submit(job(n)) for n in range(3))), 20)
            assert run.batches == [[0, 1, 2]]
            assert [each.answer.actions for each in done if isinstance(each.answer, Answer)] == [0, 1, 2]

    asyncio.run(scene())


def test_a_full_batch_leaves_without_the_others() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), company=lambda: 50) as made:
            jobs = [made.submit(job(n)) for n in range(9)]
            await asyncio.wait_for(asyncio.gather(*jobs[:8]), 20)
            assert run.batches == [[0, 1, 2, 3], [4, 5, 6, 7]] and not jobs[8].done()

    asyncio.run(scene())


def test_the_bound_holds_from_the_arrival_of_the_oldest() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), company=lambda: 50, wait_s=0.2) as made:
            start = time.perf_counter()
            first = made.submit(job(1))
            await asyncio.sleep(0.1)
            second = made.submit(job(2))
            done = await asyncio.wait_for(first, 20)
            await second
            assert run.batches == [[1, 2]]
            assert run.starts[0] - start >= 0.19, "it waited for company"
            assert done.queue_ms == pytest.approx(1e3 * (run.starts[0] - start), abs=50)

    asyncio.run(scene())


def test_who_waited_while_the_engine_was_busy_does_not_wait_again() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), company=lambda: 50, max_batch=4, wait_s=0.05) as made:
            first = await held(run, made)
            late = [made.submit(job(n)) for n in range(2)]
            await asyncio.sleep(0.1)
            released = time.perf_counter()
            run.gate.set()
            await asyncio.wait_for(asyncio.gather(first, *late), 20)
            assert run.batches == [[100], [0, 1]]
            assert run.starts[1] - released < 0.05, "sent off as soon as the engine was free"

    asyncio.run(scene())


def test_one_whom_nobody_waits_for_is_left_out() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), company=lambda: 1) as made:
            first = await held(run, made)
            gone, stays = made.submit(job(1)), made.submit(job(2))
            gone.cancel()
            run.gate.set()
            await asyncio.wait_for(asyncio.gather(first, stays), 20)
            assert run.batches == [[100], [2]]

    asyncio.run(scene())


def test_an_engine_that_breaks_answers_with_its_error_and_goes_on() -> None:
    async def scene() -> None:
        async with batcher(Recorder(), company=lambda: 1) as made:
            broken = await asyncio.wait_for(made.submit(job(-1)), 20)
            assert isinstance(broken.answer, RuntimeError)
            assert isinstance((await asyncio.wait_for(made.submit(job(1)), 20)).answer, Answer)

    asyncio.run(scene())
