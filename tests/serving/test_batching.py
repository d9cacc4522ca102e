"""The queue: requests share a batch where waiting costs little, and never wait longer than the bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from specpolicy.control.inference import InferenceResult
from specpolicy.serving.batching import Batcher


class Recorder:
    """Says which batches came, and when."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.starts: list[float] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, jobs: Sequence[int]) -> list[InferenceResult]:
        self.batches.append(list(jobs))
        self.starts.append(time.perf_counter())
        self.entered.set()
        self.gate.wait()
        if any(job < 0 for job in jobs):
            raise RuntimeError("the engine broke")
        return [InferenceResult(np.full((1, 1), job, np.float32), 1) for job in jobs]


@asynccontextmanager
async def batcher(
    run: Any, sessions: Callable[[], int], max_batch: int = 4, wait_s: float = 60.0
) -> AsyncIterator[Batcher]:
    made = Batcher(run, max_batch, wait_s, sessions)
    made.start()
    try:
        yield made
    finally:
        await made.stop()


async def occupied(run: Recorder, made: Batcher) -> asyncio.Future[Any]:
    """Make the engine busy with a job of its own."""
    run.gate.clear()
    first = made.submit(100)
    made.sessions_changed()
    while not run.entered.is_set():
        await asyncio.sleep(0.001)
    return first


def test_nobody_waits_if_nobody_else_could_come() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), sessions=lambda: 1) as made:
            done = await asyncio.wait_for(made.submit(7), 20)
            assert run.batches == [[7]] and done.batch == 1
            assert done.result.actions == 7

    asyncio.run(scene())


def test_all_who_are_here_leave_together_at_once() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), sessions=lambda: 3) as made:
            done = await asyncio.wait_for(asyncio.gather(*(made.submit(n) for n in range(3))), 20)
            assert run.batches == [[0, 1, 2]]
            assert [each.result.actions for each in done] == [0, 1, 2]

    asyncio.run(scene())


def test_a_full_batch_leaves_without_the_others() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), sessions=lambda: 50) as made:
            jobs = [made.submit(n) for n in range(9)]
            await asyncio.wait_for(asyncio.gather(*jobs[:8]), 20)
            assert run.batches == [[0, 1, 2, 3], [4, 5, 6, 7]] and not jobs[8].done()

    asyncio.run(scene())


def test_the_bound_holds_from_the_arrival_of_the_oldest() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), sessions=lambda: 50, wait_s=0.2) as made:
            start = time.perf_counter()
            first = made.submit(1)
            await asyncio.sleep(0.1)
            second = made.submit(2)
            done = await asyncio.wait_for(first, 20)
            await second
            assert run.batches == [[1, 2]]
            assert run.starts[0] - start >= 0.19, "it waited for others"
            assert done.queue_ms == pytest.approx(1e3 * (run.starts[0] - start), abs=50)

    asyncio.run(scene())


def test_who_waited_while_the_engine_was_busy_does_not_wait_again() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), sessions=lambda: 50, max_batch=4, wait_s=0.05) as made:
            first = await occupied(run, made)
            late = [made.submit(n) for n in range(2)]
            await asyncio.sleep(0.1)
            released = time.perf_counter()
            run.gate.set()
            await asyncio.wait_for(asyncio.gather(first, *late), 20)
            assert run.batches == [[100], [0, 1]]
            assert run.starts[1] - released < 0.05, "sent off as soon as the engine was free"

    asyncio.run(scene())


def test_one_whom_nobody_waits_for_is_left_out() -> None:
    async def scene() -> None:
        async with batcher(run := Recorder(), sessions=lambda: 1) as made:
            first = await occupied(run, made)
            gone, stays = made.submit(1), made.submit(2)
            gone.cancel()
            run.gate.set()
            await asyncio.wait_for(asyncio.gather(first, stays), 20)
            assert run.batches == [[100], [2]]

    asyncio.run(scene())


def test_an_engine_that_breaks_answers_with_its_error_and_goes_on() -> None:
    async def scene() -> None:
        async with batcher(Recorder(), sessions=lambda: 1) as made:
            broken = await asyncio.wait_for(made.submit(-1), 20)
            assert "failed with RuntimeError; the server's log" in (broken.result.error or "")
            assert (await asyncio.wait_for(made.submit(1), 20)).result.error is None

    asyncio.run(scene())
