"""An environment behind topics, and the operator who starts and stops the policy's node: a robot to try one on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.ros.environment import TopicError
from specpolicy.ros.interface import RosInterface, SensorTopic
from specpolicy.ros.messages import decode_action, write_sensor
from specpolicy.ros.node import make_message, no_signals
from specpolicy.utils.checks import check_choice, check_integer
from specpolicy.utils.extras import require

FAULTS = ("mute", "delay", "shorten", "future")
"""What can be done to a topic: say nothing, say what was so many ticks ago, leave out a number, stamp 10 s ahead."""


@dataclass(frozen=True)
class TopicFault:
    """Something that goes wrong with one topic of the sensors.

    Attributes:
        topic: which.
        kind: one of :data:`FAULTS`.
        first: tick at which it begins.
        ticks: for how many.
        delay_ticks: of ``"delay"``.

    Raises:
        ValueError: out of range.
    """

    topic: str
    kind: str
    first: int
    ticks: int
    delay_ticks: int = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, FAULTS)
        for name, least in (("first", 0), ("ticks", 1), ("delay_ticks", 0)):
            check_integer(name, getattr(self, name), least)


@dataclass(frozen=True)
class SimulatedEpisode:
    """What became of an episode.

    Attributes:
        seed: of the environment.
        success: whether ``info["success"]`` was true at some tick.
        return_: sum of rewards.
        actions: shape ``(ticks, dim)``, as the environment was given them.
    """

    seed: int
    success: bool
    return_: float
    actions: NDArray[np.float64]


class SimulatorNode:
    """An environment behind topics.

    In lockstep it steps when a message of every action topic has come. Else it steps at its rate, with the latest
    action, or standing still before there is one, as a robot's own controller would.

    Args:
        env: with vectors and images as observations, and a Box of actions.
        interface: the topics, as the policy's node has them.
        rate_hz: steps a second, where they are timed.
        lockstep: see above.
        operates: name of the policy's node, which is configured, and activated for each episode; None: somebody else
            does that.
        faults: of its sensors.
        timeout_s: how long to wait for others.
        begun: called when the first action of an episode has come.

    Raises:
        ImportError: ROS is not installed; the message names the extra.
        ValueError: the environment does not observe what the interface says, or takes other actions.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        interface: RosInterface,
        rate_hz: float = 20.0,
        lockstep: bool = False,
        operates: str | None = None,
        faults: Sequence[TopicFault] = (),
        timeout_s: float = 60.0,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        if env.action_space.shape != (interface.spec.dim,):
            raise ValueError(
                f"the environment takes actions of shape {env.action_space.shape}, the interface gives "
                f"({interface.spec.dim},)"
            )
        self._env, self._interface, self._rate_hz, self._lockstep = env, interface, rate_hz, lockstep
        self._begun = begun
        self._operates, self._faults, self._timeout_s = operates, tuple(faults), timeout_s
        self._topics: dict[str, dict[str, SensorTopic]] = {}
        for key, sensor in interface.observations.items():
            self._topics.setdefault(sensor.topic, {})[key] = sensor
        if unknown := {fault.topic for fault in faults} - set(self._topics):
            raise ValueError(f"faults of {', '.join(sorted(unknown))}; the topics are {', '.join(self._topics)}")
        if any(each.kind == "shorten" and next(iter(self._topics[each.topic].values())).type == "PoseStamped"
               for each in faults):  # fmt: skip
            raise ValueError("a PoseStamped always has its seven numbers and cannot be shortened")
        rclpy: Any = require("rclpy", "ros")
        self._context: Any = require("rclpy.context", "ros").Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=no_signals())
        self._node: Any = require("rclpy.node", "ros").Node("simulator", context=self._context)
        self._spinner: Any = require("rclpy.executors", "ros").SingleThreadedExecutor(context=self._context)
        self._spinner.add_node(self._node)
        self._publishers = {
            topic: self._node.create_publisher(type(make_message(next(iter(parts.values())).type)), topic, 10)
            for topic, parts in self._topics.items()
        }
        self._action = np.zeros(interface.spec.dim)
        self._come: set[str] = set()
        for action in interface.actions:

            def receive(message: Any, action: Any = action) -> None:
                decode_action(action, message, self._action)
                self._come.add(action.topic)

            self._node.create_subscription(type(make_message(action.type)), action.topic, receive, 10)

    def play(self, seeds: Sequence[int]) -> Iterator[SimulatedEpisode]:
        """Play episodes, one after another.

        Args:
            seeds: of the environment and of the policy.

        Yields:
            What became of each.

        Raises:
            TopicError: the policy's node does not answer, refuses, or gives no actions.
        """
        if self._operates is not None and self._state() == "unconfigured":
            self._change("configure")
        for seed in seeds:
            yield self._episode(seed)

    def close(self) -> None:
        """Leave the network."""
        self._spinner.shutdown(0)
        self._node.destroy_node()
        self._context.try_shutdown()

    def _episode(self, seed: int) -> SimulatedEpisode:
        observation, _ = self._env.reset(seed=seed)
        past: deque[Any] = deque([observation], maxlen=1 + max((each.delay_ticks for each in self._faults), default=0))
        self._action[:] = self._interface.spec.initial_action(observation)
        self._come.clear()
        if self._operates is not None:
            self._set_seed(seed)
            self._change("activate")
        self._until(lambda: all(each.get_subscription_count() for each in self._publishers.values()), "a subscriber")
        actions: list[NDArray[np.float64]] = []
        success, total, over, begun = False, 0.0, False, time.monotonic()
        while not over:
            self._publish(past, len(actions))
            if self._lockstep:
                self._until(lambda: len(self._come) == len(self._interface.actions), "an action")
                self._come.clear()
            elif not self._come and not actions:  # the policy has not begun yet
                self._spin(1 / self._rate_hz)
                begun = time.monotonic()
                continue
            else:
                self._spin(begun + (len(actions) + 1) / self._rate_hz - time.monotonic())
            if not actions:
                self._begun()
            actions.append(self._action.copy())
            sent = self._action.astype(self._env.action_space.dtype)
            observation, reward, terminated, truncated, info = self._env.step(sent)
            past.append(observation)
            success, total = success or bool(info.get("success", False)), total + float(reward)
            over = terminated or truncated
        if self._operates is not None:
            self._change("deactivate")
        return SimulatedEpisode(seed, success, total, np.stack(actions))

    def _publish(self, past: Sequence[Any], tick: int) -> None:
        now = 1e-9 * float(self._node.get_clock().now().nanoseconds)
        for topic, parts in self._topics.items():
            fault = next(
                (each for each in self._faults if each.topic == topic and 0 <= tick - each.first < each.ticks), None
            )
            kind = None if fault is None else fault.kind
            if kind == "mute":
                continue
            back = min(fault.delay_ticks, len(past) - 1) if fault is not None and kind == "delay" else 0
            stamp = now + (10.0 if kind == "future" else -back / self._rate_hz)
            message = write_sensor(parts, past[-1 - back], stamp, make_message)
            if kind == "shorten":
                _shorten(message)
            self._publishers[topic].publish(message)

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._spinner.spin_once(timeout_sec=left)

    def _until(self, condition: Any, what: str) -> None:
        end = time.monotonic() + self._timeout_s
        while not condition():
            if time.monotonic() > end:
                raise TopicError(f"the simulator waited {self._timeout_s:g} s for {what}")
            self._spinner.spin_once(timeout_sec=0.01)

    def _ask(self, package: str, kind: str, service: str, request: Any) -> Any:
        services: Any = require(f"{package}.srv", "ros")
        client = self._node.create_client(getattr(services, kind), f"/{self._operates}/{service}")
        try:
            self._until(client.service_is_ready, f"/{self._operates}/{service}")
            future = client.call_async(request(getattr(services, kind).Request()))
            self._until(future.done, f"the answer of /{self._operates}/{service}")
            return future.result()
        finally:
            self._node.destroy_client(client)

    def _state(self) -> str:
        return str(self._ask("lifecycle_msgs", "GetState", "get_state", lambda request: request).current_state.label)

    def _change(self, transition: str) -> None:
        def request(empty: Any) -> Any:
            message: Any = require("lifecycle_msgs.msg", "ros").Transition
            empty.transition.id = getattr(message, f"TRANSITION_{transition.upper()}")
            return empty

        if not self._ask("lifecycle_msgs", "ChangeState", "change_state", request).success:
            raise TopicError(f"/{self._operates} refused to {transition}; its diagnostics say why")

    def _set_seed(self, seed: int) -> None:
        def request(empty: Any) -> Any:
            messages: Any = require("rcl_interfaces.msg", "ros")
            value = messages.ParameterValue(type=messages.ParameterType.PARAMETER_INTEGER, integer_value=seed)
            empty.parameters = [messages.Parameter(name="seed", value=value)]
            return empty

        self._ask("rcl_interfaces", "SetParameters", "set_parameters", request)


def _shorten(message: Any) -> None:
    """Leave out the last number, or byte, and the joint that it belongs to."""
    for name in ("data", "name", "position", "velocity", "effort"):
        value = getattr(message, name, None)
        if value is not None and len(value):
            setattr(message, name, value[:-1])
