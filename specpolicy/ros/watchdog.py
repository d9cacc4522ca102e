"""The watchdog's side of ROS: another process publishes the safe action when the node's cannot."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specpolicy.ros.interface import RosInterface
from specpolicy.ros.messages import write_action
from specpolicy.ros.node import make_message, no_signals
from specpolicy.utils.extras import require

_DISCOVERY_S = 5.0  # longest wait for subscribers; a robot that is not there yet must not keep the node from starting


@dataclass
class TopicSender:
    """Publishes an action on the topics of an interface, with publishers of its own.

    Attributes:
        interface: the topics.
        name: of the node.
        period_s: until the next command; trajectories have their point so far ahead.
        ros_args: arguments of ROS, the same as the node's: topics must be remapped alike.
    """

    interface: RosInterface
    name: str
    period_s: float
    ros_args: tuple[str, ...] = ()
    _publishers: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _node: Any = field(default=None, init=False, repr=False)

    def open(self) -> None:
        """Join the network and wait for who listens, up to five seconds: a new publisher takes a moment to be found."""
        # Fast DDS would use memory that it shares with the node: a process stopped in the middle may hold its locks.
        os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
        context = require("rclpy.context", "ros").Context()
        arguments = ["--ros-args", *self.ros_args] if self.ros_args else []
        rclpy: Any = require("rclpy", "ros")
        rclpy.init(args=arguments, context=context, signal_handler_options=no_signals())
        self._node = rclpy.create_node(self.name, context=context)
        for topic in self.interface.actions:
            kind = type(make_message(topic.type))
            self._publishers[topic.topic] = self._node.create_publisher(kind, topic.topic, 10)
        # A message to nobody is lost: the loop begins when those who listen have been found, or there are none yet.
        until = time.monotonic() + _DISCOVERY_S
        while time.monotonic() < until and not all(each.get_subscription_count() for each in self._publishers.values()):
            time.sleep(0.05)

    def __call__(self, action: tuple[float, ...]) -> None:
        """Publish an action.

        Args:
            action: its entries, in the numbers that messages carry.
        """
        now_s = 1e-9 * float(self._node.get_clock().now().nanoseconds)
        for topic in self.interface.actions:
            message = write_action(topic, np.array(action), now_s, self.period_s, make_message)
            self._publishers[topic.topic].publish(message)
