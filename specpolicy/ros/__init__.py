"""A policy as a node of ROS 2: topics in, actions out, at the controller's rate (extra: ros).

What topics mean is in :mod:`~specpolicy.ros.interface`, what messages hold in :mod:`~specpolicy.ros.messages`; neither
needs ROS. :class:`TopicEnv` makes a gymnasium environment of them, so that the loop, its executors and its safety
filter are those of every other robot.
"""

from specpolicy.ros.environment import TopicEnv as TopicEnv
from specpolicy.ros.interface import ActionTopic as ActionTopic
from specpolicy.ros.interface import RosInterface as RosInterface
from specpolicy.ros.interface import SensorTopic as SensorTopic
