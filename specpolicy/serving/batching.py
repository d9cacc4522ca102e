"""Requests of several sessions, gathered into batches that share their network passes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.policies.diffusion_policy import DiffusionPolicy, Sampler
from specpolicy.policies.observations import ObservationSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one session asks for.

    Attributes:
        observation: arrays of shape ``(horizon, dim)``, images ``(horizon, ...)``, checked.
        stream: the session's random stream, as :meth:`Engine.stream` made it; sampling moves it on.
    """

    observation: Mapping[str, NDArray[Any]]
    stream: Any


@dataclass(frozen=True)
class Answer:
    """What it gets.

    Attributes:
        actions: shape ``(n_action_steps, action_dim)``.
        passes: network passes, one after another.
        acceptance: share of drafted steps accepted; None where nothing was drafted.
    """

    actions: NDArray[np.float32]
    passes: int
    acceptance: float | None


class Engine(Protocol):
    """Samples for several sessions at once. Called from one thread at a time, which is not the event loop's."""

    @property
    def observations(self) -> ObservationSpec:
        """What the policy looks at."""
        ...

    def describe(self) -> dict[str, Any]:
        """The policy, for the metadata that every client gets: numbers, text, lists and dicts."""
        ...

    def stream(self, seed: int) -> Any:
        """A random stream; a session's answers depend on it and on its observations alone."""
        ...

    def run(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """Answers in the order of ``jobs``; what is wrong with one job is that job's answer and no other's."""
        ...


class BatchedPolicy:
    """A diffusion policy and a sampler.

    Each session draws from its own generator, so that its actions do not depend on who shares its batch (up to the
    rounding of the network's batched arithmetic). Generators live on the CPU: the same seed gives the same noise on
    every device.
    """

    def __init__(self, policy: DiffusionPolicy, sampler: Sampler) -> None:
        self.policy, self.sampler = policy, sampler

    @property
    def observations(self) -> ObservationSpec:
        """What the policy looks at."""
        return self.policy.observations

    def describe(self) -> dict[str, Any]:
        """Task, shapes, and whether the sampler has the law of its chain."""
        config = self.policy.config
        return {
            "task": config.task,
            "observations": {name: _length(shape) for name, shape in self.observations.shapes.items()},
            "n_obs_steps": config.n_obs_steps,
            "action_dim": config.env_action_dim,
            "horizon": config.horizon,
            "n_action_steps": config.n_action_steps,
            "sampler": repr(self.sampler),
            "exact": bool(getattr(self.sampler, "exact", False)),
        }

    def stream(self, seed: int) -> torch.Generator:
        """A generator on the CPU."""
        return torch.Generator().manual_seed(seed)

    def run(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """One batch; if it fails, each job alone from where its stream was, to find out whose fault it is."""
        before = [job.stream.get_state() for job in jobs]
        try:
            return list(self._act(jobs))
        except Exception as error:
            for job, state in zip(jobs, before, strict=True):
                job.stream.set_state(state)
            if len(jobs) == 1:
                return [error]
            _log.warning("a batch of %d failed (%s); trying one by one", len(jobs), error)
            return [self.run([job])[0] for job in jobs]

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Sample for zeros a few times: first calls are slow, and no robot should wait for them."""
        zeros = self.observations.zeros()
        for size in batch_sizes:
            self._act([Job(zeros, self.stream(0)) for _ in range(size)])

    def _act(self, jobs: Sequence[Job]) -> list[Answer]:
        observation = {name: np.stack([job.observation[name] for job in jobs]) for name in self.observations.keys}
        chunk = self.policy.predict_action(observation, self.sampler, [job.stream for job in jobs])
        result = chunk.result
        return [
            Answer(actions, int(passes), _share(result.proposed, result.accepted, row))
            for row, (actions, passes) in enumerate(zip(chunk.actions, result.passes, strict=True))
        ]


def _length(shape: tuple[int, ...]) -> int | list[int]:
    """A vector's length as a number, an image's shape as a list."""
    return shape[0] if len(shape) == 1 else list(shape)


def _share(proposed: torch.Tensor | None, accepted: torch.Tensor | None, row: int) -> float | None:
    if proposed is None or accepted is None:
        return None
    drafted = int(proposed[:, row].clamp(min=0).sum())
    return float(accepted[:, row].clamp(min=0).sum()) / drafted if drafted else None


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
