"""Many episodes under a charged clock at once, sharing the network's passes.

Every seat plays until it has a question; then all questions about one sampler are answered from one computation. That
is possible because a charged clock does not care how long a computation takes here.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specpolicy.control.account import EpisodeAccount
from specpolicy.control.questions import Question
from specpolicy.control.sampled import ChunkPolicy, Session, answer_all
from specpolicy.evaluation.seeding import episode_generator
from specpolicy.workers import Crash

from .cells import Cell
from .seats import Begin, Seat


@dataclass(frozen=True)
class Assignment:
    """An episode to be played."""

    cell: Cell
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
    account: EpisodeAccount | None
    error: str | None
    duration_s: float


@dataclass
class _Seated:
    assignment: Assignment
    seat: Seat
    session: Session
    begun: float

    def outcome(self, account: EpisodeAccount | None, error: str | None = None) -> Outcome:
        return Outcome(self.assignment, account, error, time.perf_counter() - self.begun)


def play_together(
    policy: ChunkPolicy, samplers: Mapping[str, Any], seats: Sequence[Seat], assignments: Iterable[Assignment]
) -> Iterator[Outcome]:
    """Play episodes and hand out each as soon as it has ended; a crash costs the episode that it happened in.

    Args:
        policy: whom to ask. samplers: by the names that cells call them.
        seats: where episodes run.
        assignments: which ones, in order.
    """
    queue, free = deque(assignments), deque(seats)
    seated: list[_Seated] = []
    try:
        while queue or seated:
            asking: dict[str, list[tuple[_Seated, Question]]] = defaultdict(list)
            pending = deque(seated)
            while pending or (queue and free):
                while queue and free:
                    newcomer = _seat(queue.popleft(), free.popleft())
                    seated.append(newcomer)
                    pending.append(newcomer)
                each = pending.popleft()
                reply = each.seat.receive()
                if isinstance(reply, Question):
                    asking[each.assignment.cell.sampler].append((each, reply))
                    continue
                seated.remove(each)
                free.append(each.seat)
                yield each.outcome(None, reply.error) if isinstance(reply, Crash) else each.outcome(reply)
            for name, asked in asking.items():
                questions = [(each.session, question) for each, question in asked]
                for (each, _), answer in zip(asked, answer_all(policy, samplers[name], questions), strict=True):
                    each.seat.send(answer)
    finally:
        for each in seated:  # interrupted: they are in the middle of something
            each.seat.close()


def _seat(assignment: Assignment, seat: Seat) -> _Seated:
    cell, seed, repeat = assignment.cell, assignment.seed, assignment.repeat
    seat.send(Begin(cell.executor, cell.charge.latency, seed, repeat))
    return _Seated(assignment, seat, Session(episode_generator(seed, repeat)), time.perf_counter())
