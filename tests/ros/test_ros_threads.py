"""The node and a simulator in one process, over the loopback interface: what goes wrong on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import pytest

from specpolicy.control.executors import Asynchronous
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceRequest, InferenceResult
from specpolicy.policies.observations import ObservationSpec
from specpolicy.ros.environment import TopicError
from specpolicy.ros.interface import RosInterface, interface_from
from specpolicy.ros.node import LoadedPolicy, NodeSettings, PolicyNode
from specpolicy.ros.simulator import SimulatedEpisode, SimulatorNode, TopicFault

pytestmark = pytest.mark.skipif(find_spec("rclpy") is None, reason="needs ROS 2: pip install 'specpolicy[ros]'")
TICKS = 20


def interface(start_timeout_s: float = 20.0, kind: str = "JointState") -> RosInterface:
    joints = {"joints": ["a"]} if kind == "JointState" else {}
    return interface_from(
        {
            "observations": {"q": {"topic": "/q", "type": kind, **joints}},
            "actions": [{"topic": "/c", "type": "JointTrajectory", "dims": [0], "joints": ["a"]}],
            "spec": {"delta_dims": [0]},
            "low": -1.0,
            "high": 1.0,
            "max_age_s": 0.5,
            "start_timeout_s": start_timeout_s,
        }
    )


class Count(gymnasium.Env[Any, Any]):
    """Counts its steps."""

    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return {"q": np.zeros(1)}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return {"q": np.array([float(self.steps)])}, 0.0, False, self.steps == TICKS, {"success": False}


class Echo:
    """Chunks that say what was observed: tick / 100, for four ticks from there on."""

    n_obs_steps, predrafts = 2, False

    def reset(self, seed: int, repeat: int) -> None:
        self.asked: list[list[float]] = []

    def infer(self, request: InferenceRequest) -> InferenceResult:
        window = request.window["q"][:, 0]
        self.asked.append(window.tolist())
        return InferenceResult((window[-1] + np.arange(4.0))[:, None] / 100, 5, 9, 0.8)


@pytest.fixture(autouse=True)
def _domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_LOCALHOST_ONLY", "1")
    monkeypatch.setenv("ROS_DOMAIN_ID", str(101 + os.getpid() % 100))


def make_node(policy: Echo, interface: RosInterface, length: int = 1, **settings: Any) -> PolicyNode:
    loaded = LoadedPolicy(policy, ObservationSpec({"q": length}, 2), 1)
    return PolicyNode(
        NodeSettings(lockstep=True, reliable=True, **settings), interface, lambda: loaded, Asynchronous(2, 1), Guards()
    )


def play(
    policy: Echo, faults: Sequence[TopicFault] = (), seeds: Sequence[int] = (0,)
) -> tuple[list[SimulatedEpisode], PolicyNode]:
    """Both sides in one process, the simulator in a thread."""
    node = make_node(policy, interface(), autostart=False)
    simulator = SimulatorNode(Count(), interface(), 20.0, True, "specpolicy", faults)
    episodes: list[SimulatedEpisode] = []
    problem: list[BaseException] = []

    def simulate() -> None:
        try:
            episodes.extend(simulator.play(seeds))
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=simulate)
    thread.start()
    try:
        node.run(lambda: not thread.is_alive())
    finally:
        thread.join(90)
        simulator.close()
    assert not problem, problem
    return episodes, node


def test_a_topic_that_fails_holds_the_robot_and_a_second_activation_begins_anew() -> None:
    policy = Echo()
    episodes, _ = play(policy, [TopicFault("/q", "shorten", 6, 3)], [0, 1])
    for episode in episodes:
        actions = episode.actions[:, 0]
        assert len(actions) == TICKS
        assert (actions[6:10] == 0.0).all()  # three messages, and one until the history is new
        assert np.allclose(actions[[5, 10, 19]], [0.05, 0.10, 0.19])
    assert [9.0, 10.0] in policy.asked and not {6.0, 7.0, 8.0} & {each[-1] for each in policy.asked}


def test_what_is_published_as_another_type_is_refused() -> None:
    simulator = SimulatorNode(Count(), interface(), 20.0)
    try:
        with pytest.raises(TopicError, match="/q is a sensor_msgs/msg/JointState; the interface says Float64"):
            make_node(Echo(), interface(kind="Float64MultiArray")).run()
    finally:
        simulator.close()


def test_without_anybody_there_it_ends_with_a_reason() -> None:
    with pytest.raises(TopicError, match=r"/c: nobody subscribes to the actions; waited 0\.2 s"):
        make_node(Echo(), interface(0.2)).run()


def test_a_policy_that_does_not_fit_is_refused_before_anything_moves() -> None:
    with pytest.raises(TopicError, match="q: the policy takes 3 numbers"):
        make_node(Echo(), interface(), 3).run()


def test_a_world_that_waits_and_limits_that_cannot_be_kept_are_refused() -> None:
    from specpolicy.control.executors import Lockstep
    from specpolicy.control.motion_limits import MotionLimits

    loaded = LoadedPolicy(Echo(), ObservationSpec({"q": 1}, 2), 1)
    with pytest.raises(ValueError, match="no robot waits for its policy"):
        PolicyNode(NodeSettings(), interface(), lambda: loaded, Lockstep(2), Guards())
    with pytest.raises(ValueError, match="no multiple of the policy"):
        PolicyNode(
            NodeSettings(), interface(), lambda: loaded, Asynchronous(2), Guards(), MotionLimits(controller_hz=33.0)
        )
