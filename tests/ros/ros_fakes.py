"""Messages as ROS's look, without ROS."""

from __future__ import annotations

from types import SimpleNamespace as Message
from typing import Any


def make(kind: str) -> Any:
    """An empty message of a type."""
    stamp = Message(stamp=Message(sec=0, nanosec=0), frame_id="")
    pose = Message(position=Message(x=0.0, y=0.0, z=0.0), orientation=Message(x=0.0, y=0.0, z=0.0, w=1.0))
    return {
        "Float64MultiArray": lambda: Message(data=[]),
        "JointState": lambda: Message(header=stamp, name=[], position=[], velocity=[], effort=[]),
        "PoseStamped": lambda: Message(header=stamp, pose=pose),
        "Image": lambda: Message(header=stamp, height=0, width=0, encoding="", step=0, data=b""),
        "CompressedImage": lambda: Message(header=stamp, format="", data=b""),
        "JointTrajectory": lambda: Message(header=stamp, joint_names=[], points=[]),
        "JointTrajectoryPoint": lambda: Message(positions=[], time_from_start=Message(sec=0, nanosec=0)),
    }[kind]()


def array(*numbers: float) -> Any:
    """A Float64MultiArray."""
    return Message(data=list(numbers))


def joints(stamp_s: float, frame: str = "", **positions: float) -> Any:
    """A JointState."""
    message = make("JointState")
    message.header.stamp.sec, message.header.stamp.nanosec = int(stamp_s), round(1e9 * (stamp_s % 1))
    message.header.frame_id = frame
    message.name, message.position = list(positions), list(positions.values())
    return message
