"""One episode after the other in this process: in real time, with latencies measured on the spot, or watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium

from specpolicy.control.clocks import Clock
from specpolicy.control.latency import Latency
from specpolicy.control.loop import ControlLoop
from specpolicy.control.sampled import ChunkPolicy, SampledPolicy
from specpolicy.control.views import View
from specpolicy.evaluation.seeding import episode_generator
from specpolicy.workers import describe

from .cells import Cell
from .crew import Assignment, Outcome
from .seats import Stage

MakeClock = Callable[[float, Latency], Clock]
"""``(rate_hz, latency)`` → a clock; one that is real has no use for the latency."""

MakeViews = Callable[[Cell], Sequence[View]]


def play_alone(
    policy: ChunkPolicy,
    samplers: Mapping[str, Any],
    stage: Stage,
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
                    SampledPolicy(policy, samplers[cell.sampler], episode_generator),
                    cell.executor,
                    make_clock(stage.rate_hz, cell.charge.latency),
                    stage.guards,
                    stage.meaning,
                    make_views(cell),
                    stage.max_ticks,
                )
                account = loop.run(assignment.seed, assignment.repeat)
            except Exception as error:
                failure = describe(error)
                if env is not None:
                    env.close()  # its state is unknown
                env = None
            yield Outcome(assignment, account, failure, time.perf_counter() - begun)
    finally:
        if env is not None:
            env.close()
