"""Every fault, injected, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from control_fakes import GRIP, SPEC, TickEnv, TickPolicy, meant

from specpolicy.control.action_buffer import Chunk
from specpolicy.control.action_space import ActionLimits, ActionSpec
from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import Asynchronous, Blocking, Executor, Lockstep, RecedingHorizon
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceResult
from specpolicy.control.latency import Constant
from specpolicy.control.loop import ControlLoop
from specpolicy.control.safety import SafetyFilter, SentAction, UnsafeAction
from specpolicy.control.trace import EpisodeTrace

Spoil = Callable[[int, InferenceResult], InferenceResult]


def play(
    guards: Guards,
    spoil: Spoil = lambda number, answer: answer,
    executor: Executor | None = None,
    latency_s: float = 0.0,
    limit: int = 20,
    bound: float = 1000.0,
    clock: Any = None,
) -> tuple[EpisodeTrace, TickEnv]:
    """Chunks of 12 actions of which 4 are planned; TickEnv itself asserts that actions are finite and within limits."""
    env = TickEnv(limit, bound=bound)
    clock = clock or SimulatedLatencyClock(20.0, Constant(latency_s))
    executor = executor or RecedingHorizon(4)
    return ControlLoop(env, TickPolicy(spoil=spoil), executor, clock, guards, SPEC).run(0), env


def raising(number: int, answer: InferenceResult) -> InferenceResult:
    """The second computation throws."""
    if number == 1:
        raise RuntimeError("simulated failure of the denoiser")
    return answer


def poisoned(value: float, at: int = 1) -> Spoil:
    """Computation ``at`` has ``value`` in its third action."""

    def spoil(number: int, answer: InferenceResult) -> InferenceResult:
        if number != at or answer.actions is None:
            return answer
        actions = answer.actions.copy()
        actions[2, 1] = value
        return replace(answer, actions=actions)

    return spoil


CHUNK_FAULTS = [
    pytest.param("failure", raising, id="throws"),
    pytest.param("non_finite", poisoned(float("nan")), id="nan"),
    pytest.param("non_finite", poisoned(float("inf")), id="infinity"),
    pytest.param("failure", lambda n, a: replace(a, actions=np.ones((5, 2))) if n == 1 else a, id="wrong shape"),
]


@pytest.mark.parametrize(("fault", "spoil"), CHUNK_FAULTS)
def test_a_refused_chunk_leaves_the_last_safe_one(fault: str, spoil: Spoil) -> None:
    trace, env = play(Guards(), spoil, executor=Lockstep(4), latency_s=0.05)
    assert trace.faults == {fault: 1} and trace.stopped is None
    sent = meant(env.actions)
    assert [each.tick for each in sent] == list(range(20))
    assert [each.observed for each in sent[:9]] == [0] * 5 + [5] * 4  # one action more of the first chunk
    row = trace.ticks[4]
    assert (row.source, row.fault, row.response) == ("guard", fault, "last_safe")


@pytest.mark.parametrize(("fault", "spoil"), CHUNK_FAULTS)
def test_a_refused_chunk_can_hold_the_robot_until_the_next(fault: str, spoil: Spoil) -> None:
    guards = Guards(**{fault: "hold"})  # type: ignore[arg-type]
    trace, env = play(guards, spoil, latency_s=0.1)
    # asked at 6, refused at 8, asked again at 8, there at 10
    assert not env.actions[8][:2].any() and not env.actions[9][:2].any() and env.actions[8][2] == np.float32(GRIP)
    assert env.actions[7][:2].any() and env.actions[10][:2].any()
    assert {row.response for row in trace.ticks[8:10]} == {"hold"}


def test_a_brake_comes_to_rest_in_steps() -> None:
    trace, env = play(Guards(failure="brake", brake_ticks=4), raising, latency_s=0.25)  # type: ignore[arg-type]
    at = next(row.tick for row in trace.ticks if row.response == "brake")
    speed = [float(action[1]) for action in env.actions[at - 1 : at + 5]]
    assert speed == pytest.approx([speed[0] * share for share in (1, 0.75, 0.5, 0.25, 0, 0)])
    assert {float(action[2]) for action in env.actions[at : at + 5]} == {GRIP}


@pytest.mark.parametrize(("fault", "spoil"), CHUNK_FAULTS)
def test_stop_ends_the_episode_with_a_hold(fault: str, spoil: Spoil) -> None:
    trace, env = play(Guards(**{fault: "stop"}), spoil)  # type: ignore[arg-type]
    assert trace.stopped == fault
    assert len(trace.ticks) == 5 and not env.actions[-1][:2].any()
    assert trace.ticks[-1].response == "stop"


def test_a_policy_that_never_answers_well_is_given_up() -> None:
    trace, env = play(Guards(give_up_after=3), lambda n, a: InferenceResult(error="broken"))
    assert trace.stopped == "failure" and trace.faults == {"failure": 3}
    assert not any(action[:2].any() for action in env.actions) and env.actions[-1][2] == -1.0
    trace, _ = play(Guards(give_up_after=None), lambda n, a: InferenceResult(error="broken"))
    assert trace.stopped is None and len(trace.ticks) == 20


@pytest.mark.parametrize(
    ("response", "expected"),
    [("clip", 9.0), ("hold", 0.0), ("brake", 6 * 0.75), ("last_safe", 7.0), ("stop", 0.0)],
)
def test_an_action_out_of_range(response: str, expected: float) -> None:
    guards = Guards(out_of_range=response)  # type: ignore[arg-type]
    trace, env = play(guards, poisoned(77.0), bound=9.0, limit=8)
    assert trace.faults == {"out_of_range": 1}
    row = trace.ticks[6]  # the third action of the chunk that was observed at tick 4
    assert (row.fault, row.response) == ("out_of_range", response)
    assert env.actions[6][1] == pytest.approx(expected)
    assert (trace.stopped == "out_of_range") == (len(trace.ticks) == 7) == (response == "stop")


def test_a_hair_out_of_range_is_no_fault() -> None:
    trace, env = play(Guards(tolerance=0.5), poisoned(9.4), bound=9.0, limit=8)
    assert not trace.faults and env.actions[6][1] == 9.0
    trace, _ = play(Guards(tolerance=0.3), poisoned(9.4), bound=9.0, limit=8)
    assert trace.faults == {"out_of_range": 1}


@pytest.mark.parametrize("response", ["send", "hold", "brake", "stop"])
def test_an_action_from_an_old_observation_is_stale(response: str) -> None:
    trace, env = play(Guards(stale=response, max_age_s=0.25), latency_s=0.1)  # type: ignore[arg-type]
    # handed over at tick 2; its actions are 2 to 7 ticks old, five ticks are allowed
    stale = [row.tick for row in trace.ticks if row.fault == "stale"]
    assert trace.faults["stale"] == len(stale)
    if response == "stop":
        assert stale == [6] and trace.stopped == "stale" and len(trace.ticks) == 7
    else:
        assert stale == [6, 7, 12, 13, 18, 19]
        assert bool(env.actions[7][:2].any()) == (response in ("send", "brake"))


@pytest.mark.parametrize("response", ["hold", "brake", "stop"])
def test_a_tick_without_an_action_is_a_missed_deadline(response: str) -> None:
    trace, env = play(Guards(missed=response), executor=Asynchronous(4, 4), latency_s=0.4)  # type: ignore[arg-type]
    # asked at 0, there at 8 with four actions left; asked at 8, there at 16: nothing at 12 to 15
    missed = [row.tick for row in trace.ticks if row.fault == "missed"]
    if response == "stop":
        assert missed == [12] and trace.stopped == "missed" and len(trace.ticks) == 13
    else:
        assert missed == [12, 13, 14, 15] and trace.faults == {"missed": 4}
        assert env.actions[12][:2].any() == (response == "brake") and not env.actions[15][:2].any()


def test_a_pause_is_no_fault_until_the_deadline() -> None:
    trace, _ = play(Guards(), executor=Blocking(4), latency_s=0.3)
    assert not trace.faults
    trace, _ = play(Guards(deadline_s=0.2), executor=Blocking(4), latency_s=0.3)
    assert [row.tick for row in trace.ticks if row.fault == "missed"] == [5, 15]  # one of the six ticks each


class Blind(TickEnv):
    """Has lost its sensor from step 6 to step 8."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        lost = 6 <= len(self.actions) <= 8
        return observation, reward, terminated, truncated, info | ({"problem": "no image for 0.7 s"} if lost else {})


@pytest.mark.parametrize("response", ["hold", "brake", "send", "stop"])
def test_a_lost_sensor_is_a_fault_at_once_and_keeps_the_policy_from_being_asked(response: str) -> None:
    env, policy = Blind(20), TickPolicy()
    guards = Guards(sensor=response)  # type: ignore[arg-type]
    trace = ControlLoop(env, policy, RecedingHorizon(4), SimulatedLatencyClock(20.0), guards, SPEC).run(0)
    assert trace.reason is not None and trace.reason.endswith("no image for 0.7 s")
    if response == "stop":
        assert trace.stopped == "sensor" and len(trace.ticks) == 7 and not env.actions[6][:2].any()
        return
    assert trace.faults["sensor"] == 3 and len(trace.ticks) == 20
    assert {int(asked.window["tick"][-1, 0]) for asked in policy.asked}.isdisjoint({6, 7, 8})
    moving = [bool(action[:2].any()) for action in env.actions[6:9]]
    assert moving == {"hold": [False] * 3, "brake": [True] * 3, "send": [True] * 3}[response]


class Laggard(SimulatedLatencyClock):
    """Tick 3 is sent late."""

    def now(self) -> float:
        return super().now() + (0.04 if self._tick == 3 else 0.0)


@pytest.mark.parametrize("response", ["send", "hold", "stop"])
def test_a_tick_that_is_sent_late(response: str) -> None:
    trace, env = play(Guards(late=response), clock=Laggard(20.0))  # type: ignore[arg-type]
    assert [row.tick for row in trace.ticks if row.fault == "late"] == [3]
    assert bool(env.actions[3][:2].any()) == (response == "send")
    assert (trace.stopped == "late") == (response == "stop")
    trace, _ = play(Guards(late_s=0.05), clock=Laggard(20.0))
    assert not trace.faults


class BadBlend:
    """Spoils what was good in every chunk."""

    def __call__(self, tick: int, chunks: Sequence[Chunk]) -> Any:
        return chunks[-1].at(tick) * (float("nan") if 8 <= tick < 10 else 1.0)


def test_a_blend_that_is_not_finite_is_caught_on_its_way_out() -> None:
    trace, env = play(Guards(), executor=RecedingHorizon(4, BadBlend()))
    assert trace.faults == {"non_finite": 2}
    # the last safe chunk is the one before, which still has actions for these ticks
    assert [each.observed for each in meant(env.actions)[7:11]] == [4, 4, 4, 8]
    assert [each.tick for each in meant(env.actions)] == list(range(20))


def test_nothing_unsafe_passes_the_end_of_the_gate() -> None:
    limits = ActionLimits.from_space(TickEnv(bound=1.0).action_space, SPEC)
    gate = SafetyFilter(Guards(), SPEC, limits, np.zeros(3), 20.0)
    for action in (np.full(3, np.nan), np.full(3, 2.0), np.zeros(2)):
        with pytest.raises(UnsafeAction):
            gate._checked(SentAction(action, "planned"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"failure": "clip"}, "failure='clip'; possible responses are brake, hold, last_safe, stop"),
        ({"out_of_range": "send"}, "out_of_range='send'"),
        ({"stale": "pray"}, "stale='pray'"),
        ({"max_age_s": 0.0}, "max_age_s=0.0"),
        ({"brake_ticks": 0}, "brake_ticks=0"),
        ({"give_up_after": 0}, "give_up_after=0"),
    ],
)
def test_guards_that_make_no_sense(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Guards(**wrong)


def test_the_meaning_of_actions() -> None:
    assert SPEC.initial_action({}).tolist() == [0.0, 0.0, -1.0]
    assert SPEC.slow_down(np.array([2.0, 4.0, 1.0]), 0.5).tolist() == [1.0, 2.0, 1.0]
    finger = ActionSpec((), (0, 1), initial_from="finger")
    assert finger.initial_action({"finger": [3.0, 4.0]}).tolist() == [3.0, 4.0]
    assert finger.slow_down(np.array([3.0, 4.0]), 0.0).tolist() == [3.0, 4.0]
    with pytest.raises(ValueError, match="the environment observes hand"):
        finger.initial_action({"hand": [0.0]})
    with pytest.raises(ValueError, match="every entry of an action once"):
        ActionSpec((0, 1), (1,), initial=(0.0,))
    with pytest.raises(ValueError, match="0 values for 1 absolute"):
        ActionSpec((0, 1), (2,))
    with pytest.raises(ValueError, match=r"Box of shape \(3,\)"):
        ActionLimits.from_space(gymnasium.spaces.Discrete(3), SPEC)
