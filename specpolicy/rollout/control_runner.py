"""Many episodes under a charged clock at once, sharing the network's passes.

Every seat plays until it has a question; then all questions about one sampler are answered from one computation. That
is possible because a charged clock does not care how long a computation takes here.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium

from specpolicy.control.clocks import Clock
from specpolicy.control.controller import ControllerConfig
from specpolicy.control.inference import EpisodeState, InferenceRequest, PolicyRunner, infer_batch
from specpolicy.control.latency import Latency
from specpolicy.control.loop import ControlLoop
from specpolicy.control.trace import EpisodeTrace
from specpolicy.control.viewers import View
from specpolicy.policies.protocols import ChunkPolicy
from specpolicy.rollout.control_workers import ControlWorker, ResetRequest, WorkerConfig
from specpolicy.rollout.workers import WorkerError
from specpolicy.utils.errors import format_exception

MakeClock = Callable[[float, Latency], Clock]
"""``(rate_hz, latency)`` → a clock; one that is real has no use for the latency."""

MakeViews = Callable[[ControllerConfig], Sequence[View]]


def run_control_episode(
    policy: ChunkPolicy,
    samplers: Mapping[str, Any],
    stage: WorkerConfig,
    make_clock: MakeClock,
    assignments: Iterable[Assignment],
    make_views: MakeViews = lambda cell: (),
) -> Iterator[Outcome]:
    """Play episodes and hand out each as soon as it has ended; a crash costs the episode that it happened in."""
    env: gymnasium.Env[Any, Any] | None = None
    try:
        for assignment in assignments:
            cell, begun = assignment.cell, time.perf_counter()
            account, failure = None, None
            try:
                env = env if env is not None else stage.make_env()
                loop = ControlLoop(
                    env,
                    PolicyRunner(policy, samplers[cell.sampler]),
                    cell.executor,
                    make_clock(stage.rate_hz, cell.charge.latency),
                    stage.guards,
                    stage.meaning,
                    make_views(cell),
                    stage.max_ticks,
                )
                account = loop.run(assignment.seed, assignment.repeat)
            except Exception as error:
                failure = format_exception(error)
                if env is not None:
                    env.close()  # its state is unknown
                env = None
            yield Outcome(assignment, account, failure, time.perf_counter() - begun)
    finally:
        if env is not None:
            env.close()


@dataclass(frozen=True)
class Assignment:
    """An episode to be played."""

    cell: ControllerConfig
    seed: int
    repeat: int


@dataclass(frozen=True)
class Outcome:
    """An episode that has ended.

    Attributes:
        assignment: which.
        account: what happened; None if it crashed.
        error: why it crashed; None if it did not.
        duration_s: wall time from reset to end, shared with the episodes beside it.
    """

    assignment: Assignment
    account: EpisodeTrace | None
    error: str | None
    duration_s: float


@dataclass
class _RunningEpisode:
    assignment: Assignment
    seat: ControlWorker
    session: EpisodeState
    begun: float

    def outcome(self, account: EpisodeTrace | None, error: str | None = None) -> Outcome:
        return Outcome(self.assignment, account, error, time.perf_counter() - self.begun)


def run_control_batched(
    policy: ChunkPolicy, samplers: Mapping[str, Any], seats: Sequence[ControlWorker], assignments: Iterable[Assignment]
) -> Iterator[Outcome]:
    """Play episodes and hand out each as soon as it has ended; a crash costs the episode that it happened in.

    Args:
        policy: whom to ask. samplers: by the names that cells call them.
        seats: where episodes run.
        assignments: which ones, in order.
    """
    queue, free = deque(assignments), deque(seats)
    seated: list[_RunningEpisode] = []
    try:
        while queue or seated:
            asking: dict[str, list[tuple[_RunningEpisode, InferenceRequest]]] = defaultdict(list)
            pending = deque(seated)
            while pending or (queue and free):
                while queue and free:
                    newcomer = _begin(queue.popleft(), free.popleft())
                    seated.append(newcomer)
                    pending.append(newcomer)
                each = pending.popleft()
                reply = each.seat.receive()
                if isinstance(reply, InferenceRequest):
                    asking[each.assignment.cell.sampler].append((each, reply))
                    continue
                seated.remove(each)
                free.append(each.seat)
                yield each.outcome(None, reply.error) if isinstance(reply, WorkerError) else each.outcome(reply)
            for name, asked in asking.items():
                questions = [(each.session, question) for each, question in asked]
                for (each, _), answer in zip(asked, infer_batch(policy, samplers[name], questions), strict=True):
                    each.seat.send(answer)
    finally:
        for each in seated:  # interrupted: they are in the middle of something
            each.seat.close()


def _begin(assignment: Assignment, seat: ControlWorker) -> _RunningEpisode:
    cell, seed, repeat = assignment.cell, assignment.seed, assignment.repeat
    seat.send(ResetRequest(cell.executor, cell.charge.latency, seed, repeat))
    return _RunningEpisode(assignment, seat, EpisodeState.start(seed, repeat), time.perf_counter())
