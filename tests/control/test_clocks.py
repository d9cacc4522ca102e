"""Time: charged and real."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from control_fakes import SPEC, TickEnv, TickPolicy, meant

from specpolicy.control.clocks import RealTimeClock, SimulatedLatencyClock
from specpolicy.control.executors import Asynchronous, Lockstep, RecedingHorizon
from specpolicy.control.inference import InferenceRequest, InferenceResult
from specpolicy.control.latency import Constant, Empirical, Latency, LogNormal, Measured
from specpolicy.control.loop import ControlLoop


def delays(latency: Latency, rate_hz: float = 20.0, seed: int = 0, episodes: int = 1) -> list[int]:
    """Ticks from the observation of each chunk to the first action from it."""
    found = []
    for repeat in range(episodes):
        clock = SimulatedLatencyClock(rate_hz, latency)
        trace = ControlLoop(TickEnv(), TickPolicy(), Asynchronous(4, 4), clock, action_spec=SPEC).run(seed, repeat)
        found += [
            inference.handover - inference.tick for inference in trace.inferences if inference.handover is not None
        ]
    return found


@pytest.mark.parametrize(
    ("latency_s", "rate_hz", "ticks"),
    [(0.0, 20, 0), (1e-6, 20, 1), (0.05, 20, 1), (0.0501, 20, 2), (0.1, 20, 2), (0.3, 10, 3), (0.3, 30, 9)],
)
def test_the_world_goes_on_for_the_latency_rounded_up_to_ticks(latency_s: float, rate_hz: float, ticks: int) -> None:
    assert set(delays(Constant(latency_s), rate_hz)) == {ticks}


def test_latencies_are_drawn_from_their_law_in_a_stream_of_their_own() -> None:
    empirical = Empirical([0.02, 0.12, 0.22])
    drawn = delays(empirical, episodes=60)
    assert set(drawn) == {1, 3, 5}
    assert np.bincount(drawn, minlength=6)[[1, 3, 5]] == pytest.approx(len(drawn) / 3, rel=0.25)
    assert drawn == delays(empirical, episodes=60)
    assert drawn != delays(empirical, episodes=60, seed=1)
    law, random = LogNormal(0.1, 0.3), np.random.default_rng(0)
    values = np.log([law.seconds(random, None, 1.0) for _ in range(4000)])
    assert np.mean(values) == pytest.approx(np.log(0.1), abs=0.02) and np.std(values) == pytest.approx(0.3, abs=0.02)
    assert (Constant(0.2).typical_s, empirical.typical_s, law.typical_s, Measured().typical_s) == (0.2, 0.12, 0.1, None)


def test_a_measured_latency_is_that_of_the_computation() -> None:
    assert set(delays(Measured())) == {1}  # the fake says a millisecond
    with pytest.raises(ValueError, match="num_envs=1"):
        Measured().seconds(np.random.default_rng(0), None, 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1.0),
        lambda: Constant(float("nan")),
        lambda: Empirical([]),
        lambda: Empirical([0.1, -0.1]),
        lambda: LogNormal(0.0, 1.0),
        lambda: SimulatedLatencyClock(0.0),
        lambda: RealTimeClock(-5.0),
    ],
)
def test_impossible_times_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        make()


class FakeTime:
    """A clock on the wall that moves when somebody sleeps, oversleeping a little, or works."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, 0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += 1
        self.now += seconds + 0.0004


class WorkingEnv(TickEnv):
    """Every step takes some time of a :class:`FakeTime`; ``pause`` is added at step 5."""

    def __init__(self, clock: FakeTime, pause: float = 0.0, limit: int = 40) -> None:
        super().__init__(limit)
        self._clock, self._pause = clock, pause

    def step(self, action: Any) -> Any:
        self._clock.now += 0.013 + 0.01 * (len(self.actions) % 3) + (self._pause if len(self.actions) == 5 else 0.0)
        return super().step(action)


def test_deadlines_do_not_drift() -> None:
    clock = FakeTime()
    loop = ControlLoop(
        WorkingEnv(clock, limit=200),
        TickPolicy(),
        RecedingHorizon(4),
        RealTimeClock(20.0, clock, clock.sleep),
        action_spec=SPEC,
    )
    trace = loop.run(0)
    late = [row.sent_s - row.due_s for row in trace.ticks]
    assert trace.skipped == 0 and clock.slept == 199
    assert late[-1] == pytest.approx(0.0004) and max(late) < 0.0005  # oversleeping does not add up
    assert trace.ticks[-1].due_s == pytest.approx(199 / 20)


def test_ticks_that_have_gone_by_are_skipped_and_chunks_keep_their_time() -> None:
    clock = FakeTime()
    env = WorkingEnv(clock, pause=0.19)
    policy = TickPolicy()
    loop = ControlLoop(env, policy, Lockstep(8), RealTimeClock(20.0, clock, clock.sleep), action_spec=SPEC)
    trace = loop.run(0)
    ticks = [row.tick for row in trace.ticks]
    # step 5 begins at 0.25 s and takes 0.033 + 0.19 s: the deadlines of ticks 6 to 8 pass, 9 is due at 0.45 s
    assert ticks[4:8] == [4, 5, 9, 10] and trace.skipped == 3
    assert trace.ticks[6].sent_s - trace.ticks[6].due_s == pytest.approx(0.023, abs=1e-3)
    assert meant(env.actions)[5].tick == 5
    assert trace.ticks[-1].due_s == pytest.approx(ticks[-1] / 20)


class SlowPolicy(TickPolicy):
    """Takes 60 ms of real time."""

    def infer(self, question: InferenceRequest) -> InferenceResult:
        time.sleep(0.06)
        return super().infer(question)


def test_in_real_time_the_loop_goes_on_while_the_policy_computes() -> None:
    env = TickEnv(limit=30)
    trace = ControlLoop(env, SlowPolicy(), Asynchronous(6, 6), RealTimeClock(100.0), action_spec=SPEC).run(0)
    jobs = [inference for inference in trace.inferences if inference.handover is not None]
    assert len(jobs) >= 2
    for inference in jobs:
        assert inference.ended_s is not None and 0.055 < inference.ended_s - inference.begun_s < 0.5
        assert inference.handover is not None and inference.handover - inference.tick >= 6
    assert len(trace.ticks) == 30 and trace.ticks[1].source == "start"
    assert {row.computing for row in trace.ticks} == {"whole"}


def test_in_real_time_lockstep_stops_the_world() -> None:
    trace = ControlLoop(TickEnv(limit=8), SlowPolicy(), Lockstep(4), RealTimeClock(100.0), action_spec=SPEC).run(0)
    assert 0.055 < trace.ticks[0].sent_s < 0.5
    assert trace.ticks[0].age_s == pytest.approx(trace.ticks[0].sent_s, abs=1e-3)
    assert trace.ticks[-1].due_s > 0.12 + 7 / 100 - 1e-6
    assert {row.source for row in trace.ticks} == {"planned"}


def test_nothing_is_computed_before_the_start() -> None:
    with pytest.raises(RuntimeError, match="before the clock's start"):
        RealTimeClock().launch(lambda: InferenceResult())
