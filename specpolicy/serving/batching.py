"""Requests of several sessions, gathered into batches that share network evaluations."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from specpolicy.control.inference import (
    EpisodeState,
    InferenceRequest,
    InferenceResult,
    episode_generator,
    infer_batch,
    steady_state,
)
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.observations import ObservationError, ObservationSpec
from specpolicy.policies.protocols import reduced_precision
from specpolicy.speculative.denoiser import DenoiserError
from specpolicy.speculative.sampler_call import Sampler

_log = logging.getLogger(__name__)

Job: TypeAlias = tuple[EpisodeState, InferenceRequest]
"""One session's request; its state's random stream advances."""


class Engine(Protocol):
    """Samples for several sessions at once. Called from one thread at a time, which is not the event loop's."""

    @property
    def observations(self) -> ObservationSpec:
        """What the policy observes."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe the policy for the metadata that every client gets: numbers, text, lists and dicts."""
        ...

    def check_prefix(self, actions: NDArray[Any]) -> None:
        """Raise :class:`~specpolicy.policies.prefix.PrefixError` if the policy cannot continue these actions."""
        ...

    def run(self, jobs: Sequence[Job]) -> list[InferenceResult]:
        """Answer in the order of ``jobs``; a job that fails has a result with an ``error`` and spoils no other's."""
        ...


class BatchedPolicy:
    """A diffusion policy and a sampler, as :class:`Engine`.

    Each session draws from its own generator, so its actions do not depend on who shares its batch (up to the rounding
    of batched arithmetic).

    Args:
        policy: predicts action chunks.
        sampler: handed to it.
    """

    def __init__(self, policy: DiffusionPolicy, sampler: Sampler) -> None:
        self.policy, self.sampler = policy, sampler

    @property
    def observations(self) -> ObservationSpec:
        """What the policy observes."""
        return self.policy.observations

    def describe(self) -> dict[str, Any]:
        """Describe task, shapes, and whether the sampler follows the policy's distribution."""
        config = self.policy.config
        return {
            "task": config.task,
            "observations": {name: _length(shape) for name, shape in self.observations.shapes.items()},
            "n_obs_steps": config.n_obs_steps,
            "action_dim": config.env_action_dim,
            "horizon": config.horizon,
            "n_action_steps": config.n_action_steps,
            "max_delay": config.max_delay,
            "sampler": repr(self.sampler),
            "exact": bool(getattr(self.sampler, "exact", False)),
            # of the network where it is a reduced one: exact is then for the reduced network's distribution
            "precision": reduced_precision(self.sampler),
        }

    def check_prefix(self, actions: NDArray[Any]) -> None:
        """See :class:`Engine`."""
        self.policy.check_prefix(actions)

    def run(self, jobs: Sequence[Job]) -> list[InferenceResult]:
        """Sample for a batch; see :func:`specpolicy.control.inference.infer_batch`.

        Args:
            jobs: at most one of each session.

        Returns:
            Results in the order of ``jobs``; actions float32, shape ``(n_action_steps, action_dim)``, after a prefix
            as many more as that has, as far as the chunk goes.
        """
        results = infer_batch(self.policy, self.sampler, jobs, describe_error=error_for_client)
        return [
            replace(result, actions=self._executed(result.actions, job[1].under_way or 0))
            for job, result in zip(jobs, results, strict=True)
        ]

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Sample for zeros, since first calls are slow and no robot should wait for them.

        Args:
            batch_sizes: one call for each.
        """
        for size in batch_sizes:
            generators = [episode_generator(0) for _ in range(size)]
            later = steady_state(self.policy, self.sampler, self.observations.zeros(1), size)
            for sampler in (self.sampler,) if later is self.sampler else (self.sampler, later):
                self.policy.predict_action(self.observations.zeros(size), sampler, generators)

    def _executed(self, actions: NDArray[Any] | None, under_way: int) -> NDArray[Any] | None:
        return None if actions is None else actions[: under_way + self.policy.config.n_action_steps].astype(np.float32)


def _length(shape: tuple[int, ...]) -> int | list[int]:
    """A vector's length as a number, an image's shape as a list."""
    return shape[0] if len(shape) == 1 else list(shape)


def error_for_client(error: Exception) -> str:
    """Write what a client may know of a failure: the library's own words, of anything else only its type.

    Args:
        error: what the policy or the engine raised; logged with its traceback if it is not the library's own.

    Returns:
        One line.
    """
    if isinstance(error, DenoiserError | ObservationError):
        return str(error)
    _log.error("the policy failed", exc_info=error)
    return f"the policy failed with {type(error).__name__}; the server's log has the details"


class SharedRounds(Protocol):
    """Jobs under way that share network evaluations, and come and go between them; used in one thread."""

    def __len__(self) -> int:
        """How many are under way."""
        ...

    def join(self, key: Hashable, job: Job) -> None:
        """Let a job take part from the next evaluation on."""
        ...

    def advance(self) -> list[tuple[Any, InferenceResult]]:
        """Make one evaluation for all; key and result of those that have finished."""
        ...

    def abandon(self) -> list[Any]:
        """Give all jobs up, and return their keys."""
        ...


@dataclass(frozen=True)
class Done:
    """A result, and how long it took.

    Attributes:
        result: of the engine.
        batch: jobs in the batch; with :class:`SharedRounds` the most that were under way at a time.
        queue_ms: from :meth:`Batcher.submit` to the start of the job.
        infer_ms: from there to its result.
    """

    result: InferenceResult
    batch: int
    queue_ms: float
    infer_ms: float


@dataclass(eq=False)
class _Waiting:
    job: Job
    since: float
    done: asyncio.Future[Done]
    begun: float = 0.0
    most: int = 1


class Batcher:
    """Runs jobs in batches, in a thread of its own, so that the event loop stays free.

    While a batch runs, the next one gathers. Once the engine is free, the oldest job starts at the latest
    ``max_wait_s`` after it came; it starts at once if the batch is full or no other session could join. With ``rounds``
    nobody waits: a job joins those that are under way at their next network evaluation, if they are fewer than
    ``max_batch``.

    Args:
        run: the engine; see :meth:`Engine.run`.
        max_batch: most jobs of a batch.
        max_wait_s: longest wait for other jobs, in seconds.
        sessions: how many sessions could have a job waiting at this moment.
        rounds: batches continuously, in the place of ``run``; None runs whole batches.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], list[InferenceResult]],
        max_batch: int,
        max_wait_s: float,
        sessions: Callable[[], int],
        rounds: SharedRounds | None = None,
    ) -> None:
        self._rounds, self._stopped = rounds, False
        self._run, self._max_batch, self._max_wait_s, self._sessions = run, max_batch, max_wait_s, sessions
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="specpolicy-engine")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start running what is submitted."""
        self._task = asyncio.get_running_loop().create_task(self._run_batches())

    async def stop(self) -> None:
        """Let what is under way finish, and start nothing else."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._thread.shutdown)

    def submit(self, job: Job) -> asyncio.Future[Done]:
        """Put a job into the queue.

        Args:
            job: of one session.

        Returns:
            The outcome; a future that is done before the job starts takes it out of the queue.
        """
        waiting = _Waiting(job, time.perf_counter(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._changed.set()
        return waiting.done

    def sessions_changed(self) -> None:
        """Tell that a session has ended: nobody waits for its job any more."""
        self._changed.set()

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            if self._rounds is not None:
                await loop.run_in_executor(self._thread, self._run_rounds, self._rounds, loop)
                continue
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            start = time.perf_counter()
            jobs = [each.job for each in batch]
            try:
                results = await loop.run_in_executor(self._thread, self._run, jobs)
            except Exception as error:
                results = [InferenceResult(error=error_for_client(error))] * len(batch)
            infer_ms = 1e3 * (time.perf_counter() - start)
            for each, result in zip(batch, results, strict=True):
                _settle(each.done, Done(result, len(batch), 1e3 * (start - each.since), infer_ms))

    def _run_rounds(self, rounds: SharedRounds, loop: asyncio.AbstractEventLoop) -> None:
        """In the engine's thread: let jobs join before each evaluation, until none is under way."""

        def answer(job: _Waiting, result: InferenceResult) -> None:
            now = time.perf_counter()
            done = Done(result, job.most, 1e3 * (job.begun - job.since), 1e3 * (now - job.begun))
            loop.call_soon_threadsafe(_settle, job.done, done)

        under_way: list[_Waiting] = []
        while True:
            while self._waiting and len(under_way) < self._max_batch and not self._stopped:
                job = self._waiting.popleft()
                if not job.done.done():
                    job.begun = time.perf_counter()
                    rounds.join(job, job.job)
                    under_way.append(job)
            if not under_way:
                return
            for job in under_way:
                job.most = max(job.most, len(under_way))
            try:
                finished = rounds.advance()
            except Exception as error:
                failed = InferenceResult(error=error_for_client(error))
                finished = [(job, failed) for job in rounds.abandon()]
            for job, result in finished:
                under_way.remove(job)
                answer(job, result)

    async def _gather(self) -> None:
        """Return when a batch should start: there is at least one job."""
        while True:
            self._waiting = deque(each for each in self._waiting if not each.done.done())
            self._changed.clear()
            patience: float | None = None
            if self._waiting:
                patience = self._waiting[0].since + self._max_wait_s - time.perf_counter()
                enough = 1 if self._rounds is not None else min(self._max_batch, self._sessions())
                if len(self._waiting) >= enough or patience <= 0:
                    return
            try:
                async with asyncio.timeout(patience):
                    await self._changed.wait()
            except TimeoutError:
                continue


def _settle(future: asyncio.Future[Done], done: Done) -> None:
    if not future.done():
        future.set_result(done)
