"""A robot behind topics in the control loop: ages, clocks that jump, gaps, stops; without ROS, on the test's clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from ros_fakes import array, joints, make

from specpolicy.control.action_space import ActionSpec
from specpolicy.control.clocks import RealTimeClock, attempt
from specpolicy.control.executors import Asynchronous
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceRequest, InferenceResult
from specpolicy.control.loop import ControlSetup, run_episode
from specpolicy.control.trace import EpisodeTrace
from specpolicy.ros.diagnostics import ERROR, OK, LatestTrace, NodeState
from specpolicy.ros.environment import SensorReader, TickTime, TopicEnv, TopicError
from specpolicy.ros.interface import RosInterface, interface_from

RATE = 100.0
SHAPES = {"q": (1,), "goal": (2,)}


def interface(**values: Any) -> RosInterface:
    return interface_from(
        {
            "observations": {
                "q": {"topic": "/q", "type": "JointState", "joints": ["a"]},
                "goal": {"topic": "/goal", "type": "Float64MultiArray"},
            },
            "actions": [{"topic": "/c", "type": "Float64MultiArray", "dims": [0]}],
            "spec": {"delta_dims": [0]},
            "low": -1.0,
            "high": 1.0,
            "start_timeout_s": 0.2,
            **values,
        }
    )


class Now:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def reader(now: Now, **values: Any) -> SensorReader:
    made = SensorReader(interface(**values), SHAPES, now, now)
    made.receive("/q", joints(now.s, a=0.5))
    made.receive("/goal", array(1.0, 2.0))
    return made


def test_a_message_is_used_until_it_is_too_old_by_its_stamp_or_by_its_arrival() -> None:
    now = Now()
    sensors = reader(now)
    assert sensors.problem() is None and sensors.values()["goal"].tolist() == [1.0, 2.0]
    now.s += 0.19
    assert sensors.problem() is None
    now.s += 0.02
    assert sensors.problem() == "/q: the last message is 0.21 s old, and 0.2 s are allowed"
    now.s += 1.0
    sensors.receive("/q", joints(now.s - 0.3, a=0.5))  # fresh on arrival, taken long ago
    sensors.receive("/goal", array(1.0, 2.0))
    assert "/q: the last message is 0.30 s old" in str(sensors.problem())
    sensors.receive("/q", joints(now.s, a=0.5))
    assert sensors.problem() is None


def test_clocks_that_disagree_are_noticed() -> None:
    now = Now()
    sensors = reader(now)
    sensors.receive("/q", joints(now.s + 3, a=0.5))
    assert "a stamp lies 3.000 s in the future" in str(sensors.problem())
    sensors.receive("/q", joints(now.s, a=0.7))  # the sensor's clock has been set back
    assert "stamps went back by 3.000 s" in str(sensors.problem()) and sensors.states["/q"].rejected == 1
    assert sensors.values()["q"].tolist() == [0.5]
    sensors.forget()
    assert "no message has come yet" in str(sensors.problem())


def test_messages_that_overtake_one_another_are_dropped_quietly() -> None:
    now = Now()
    sensors = reader(now)
    sensors.receive("/q", joints(now.s - 0.05, a=0.9))
    assert sensors.problem() is None and sensors.values()["q"].tolist() == [0.5]
    assert sensors.states["/q"].rejected == 1


def test_a_message_that_cannot_be_read_is_a_problem_until_the_next() -> None:
    sensors = reader(Now())
    sensors.receive("/goal", array(1.0))
    assert "data has 1 numbers; expected 2" in str(sensors.problem())
    sensors.receive("/goal", array(3.0, 4.0))
    assert sensors.problem() is None and sensors.states["/goal"].rejected == 1


def test_the_loops_time_never_goes_back() -> None:
    now = Now()
    time = TickTime(now)
    first = time()
    now.s -= 500
    assert time() == first and time.jumps == 1
    now.s += 2
    assert time() == first + 2


class InlineClock(RealTimeClock):
    """Computes at once: the test's clock stands still meanwhile."""

    def launch(self, compute: Callable[[], InferenceResult]) -> Future[InferenceResult]:
        future: Future[InferenceResult] = Future()
        future.set_result(attempt(compute))
        return future


class Robot:
    """Publishes a count of its steps at each tick, and takes actions; faults are put in from outside."""

    def __init__(self, alter: Callable[[int], str | None] = lambda tick: None, ticks: int = 30, **values: Any) -> None:
        self.now = Now()
        self.interface = interface(**values)
        self.reader = SensorReader(self.interface, SHAPES, self.now, self.now)
        self.alter, self.ticks, self.actions = alter, ticks, list[float]()
        self.clock = InlineClock(RATE, self.now, self._sleep)
        self.env = TopicEnv(self.interface, self.reader, self.publish, make, self.clock, self.now, 2, poll_s=0.0001)
        self.say("")

    def _sleep(self, seconds: float) -> None:
        self.now.s += seconds

    def publish(self, topic: Any, message: Any) -> None:
        self.actions.append(message.data[0])
        if len(self.actions) == self.ticks:
            self.env.stop()
        self.now.s += 1 / RATE - 1e-7  # the next tick is due now
        self.say(self.alter(len(self.actions)) or "")
        self.now.s += 1e-5

    def say(self, fault: str) -> None:
        if fault != "silent":
            stamp = self.now.s + (9.0 if fault == "future" else 0.0)
            self.reader.receive("/q", joints(stamp, a=float(len(self.actions))))
        self.reader.receive("/goal", array(*[1.0] * (1 if fault == "short" else 2)))


class Follow:
    """Chunks of ten equal actions; remembers what it was asked about."""

    n_obs_steps, predrafts = 2, False

    def __init__(self) -> None:
        self.asked: list[list[float]] = []

    def reset(self, seed: int, repeat: int) -> None: ...

    def infer(self, request: InferenceRequest) -> InferenceResult:
        self.asked.append(request.window["q"][:, 0].tolist())
        return InferenceResult(np.full((10, 1), 0.5), 1, 1)


class Kept:
    """A view that keeps the trace."""

    trace: EpisodeTrace

    def begin(self, trace: EpisodeTrace, env: Any) -> None:
        self.trace = trace

    def tick(self, trace: EpisodeTrace, env: Any) -> None: ...

    def end(self, trace: EpisodeTrace) -> None: ...


def play(robot: Robot, guards: Guards | None = None) -> tuple[EpisodeTrace, Follow]:
    policy, kept = Follow(), Kept()
    setup = ControlSetup(
        robot.env, Asynchronous(4, 2), robot.clock, 2, ActionSpec([0]), guards or Guards(late_s=0.05), [kept]
    )
    try:
        trace = run_episode(setup, policy, 0)
    except SystemExit:
        trace = kept.trace
    return trace, policy


def test_the_loop_runs_on_topics_and_a_stop_sends_the_safe_action_last() -> None:
    robot = Robot()
    trace, policy = play(robot)
    assert not trace.faults and len(robot.actions) == 31
    assert robot.actions[-1] == 0.0 and robot.actions[-2] == 0.5
    assert all(after == before + 1 or after == before for before, after in policy.asked)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("silent", "s old, and 0.035 s are allowed"), ("short", "data has 1 numbers"), ("future", "in the future")],
)
def test_a_topic_that_fails_stops_the_robot_and_lets_it_go_on(fault: str, says: str) -> None:
    robot = Robot(lambda tick: fault if 10 <= tick < 16 else None, max_age_s=0.035)
    trace, policy = play(robot)
    wrong = [row.tick for row in trace.ticks if row.fault == "sensor"]
    first = 13 if fault == "silent" else 10
    # stamps of the future leave the sensor's next ones in the past: that needs the node to be activated again
    last = 28 if fault == "future" else 16
    assert wrong == list(range(first, last + 1)) and trace.faults["sensor"] == len(wrong)
    assert all(robot.actions[tick] == 0.0 for tick in wrong)
    assert {10, 11, 12, 13, 14, 15} - set(range(10, first)) == set(wrong) & set(range(10, 16))
    window = [each for each in policy.asked if each[1] >= 16]
    assert fault == "future" or window[0] == [16.0, 17.0], "a history without gaps"
    assert fault == "future" or robot.actions[-2] == 0.5
    latest = LatestTrace(None)
    latest.trace = trace
    text = NodeState("n", True, None, {}, latest, 0, robot.reader).findings()[0]
    assert text.values["fault_sensor"] == str(len(wrong)) and text.level == (ERROR if fault == "future" else OK)
    assert fault != "future" or says in str(trace.reason) or "stamps went back" in str(trace.reason)


def test_a_topic_that_is_lost_for_good_ends_the_episode() -> None:
    trace, _ = play(
        Robot(lambda tick: "silent" if tick >= 5 else None, 200, max_age_s=0.03), Guards(late_s=0.05, give_up_after=4)
    )
    assert trace.stopped == "failure" and "/q: the last message" in str(trace.reason) and len(trace.ticks) < 60


def test_it_does_not_start_without_its_topics() -> None:
    robot = Robot()
    robot.reader.forget()
    with pytest.raises(TopicError, match=r"/q: no message has come yet; waited 0\.2 s"):
        robot.env.reset()
    robot.reader.receive("/goal", array(1.0))
    with pytest.raises(TopicError, match="expected 2"):
        robot.env.reset()
    stopped = Robot()
    stopped.env.stop()
    with pytest.raises(SystemExit):
        stopped.env.reset()


def test_in_lockstep_a_step_ends_with_the_answer_of_every_topic() -> None:
    now = Now()
    sensors = SensorReader(interface(max_age_s=0.3), SHAPES, now, now, timed=False)
    sent = threading.Event()
    env = TopicEnv(
        interface(max_age_s=0.3), sensors, lambda topic, message: sent.set(), make, RealTimeClock(RATE), now, 1, True
    )

    def answer() -> None:
        sent.wait(5)
        sensors.receive("/q", joints(now.s + 1, a=2.0))
        sensors.receive("/goal", array(3.0, 4.0))

    sensors.receive("/q", joints(now.s, a=1.0))
    sensors.receive("/goal", array(1.0, 2.0))
    now.s += 1e6  # nobody waits for the policy: nothing is old
    env.reset()
    threading.Thread(target=answer).start()
    observation, _, _, _, info = env.step(np.zeros(1))
    assert observation["q"].tolist() == [2.0] and observation["goal"].tolist() == [3.0, 4.0] and not info
    _, _, _, _, info = env.step(np.zeros(1))
    assert info["problem"] == "/q, /goal: no message came in 0.2 s after an action"
