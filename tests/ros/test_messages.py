"""Messages become observations, and actions messages, without a digit lost; what does not fit is said in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ros_fakes import Message, array, joints, make

from specpolicy.ros.interface import ActionTopic, SensorTopic
from specpolicy.ros.messages import MessageError, decode_action, read_sensor, stamp_of, write_action, write_sensor

NUMBERS = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("parts", "shapes"),
    [
        ({"a": SensorTopic("/a", "Float64MultiArray")}, {"a": (4,)}),
        ({"q": SensorTopic("/q", "JointState", joints=["x", "y"])}, {"q": (2,)}),
        ({"v": SensorTopic("/q", "JointState", "velocity", joints=["x", "y"])}, {"v": (2,)}),
        ({"p": SensorTopic("/p", "PoseStamped", quaternion="wxyz", field="pose", frame="base")}, {"p": (7,)}),
        (
            {"p": SensorTopic("/p", "PoseStamped"), "o": SensorTopic("/p", "PoseStamped", "orientation")},
            {"p": (3,), "o": (4,)},
        ),
        ({"i": SensorTopic("/i", "Image")}, {"i": (6, 5, 3)}),
        ({"i": SensorTopic("/i", "Image")}, {"i": (3, 6, 5)}),
        ({"i": SensorTopic("/i", "Image")}, {"i": (6, 5, 1)}),
        ({"i": SensorTopic("/i", "CompressedImage")}, {"i": (3, 6, 5)}),
    ],
)
def test_what_a_simulator_writes_the_policy_reads(parts: dict[str, SensorTopic], shapes: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    values = {
        key: random.integers(0, 256, shape, np.uint8) if len(shape) == 3 else random.normal(size=shape)
        for key, shape in shapes.items()
    }
    message = write_sensor(parts, values, 12.5, make)
    for key, sensor in parts.items():
        read = read_sensor(sensor, message, shapes[key])
        assert read.dtype == values[key].dtype and np.array_equal(read, values[key])
    assert stamp_of(message) == (None if next(iter(parts.values())).type == "Float64MultiArray" else 12.5)


def test_joints_come_in_any_order_and_more_than_asked() -> None:
    sensor = SensorTopic("/q", "JointState", joints=["b", "a"])
    assert read_sensor(sensor, joints(1.0, a=1.0, c=3.0, b=2.0), (2,)).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_images_have_rows_with_padding_and_their_channels_in_any_order(encoding: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    stored = image[:, :, ::-1] if encoding.startswith("bgr") else image
    if encoding.endswith("a8"):
        stored = np.concatenate([stored, np.full((4, 5, 1), 255, np.uint8)], 2)
    rows = np.pad(stored.reshape(4, -1), ((0, 0), (0, 7)))
    message = make("Image")
    message.height, message.width, message.encoding, message.step = 4, 5, encoding, rows.shape[1]
    message.data = rows.tobytes()
    assert np.array_equal(read_sensor(SensorTopic("/i", "Image"), message, (4, 5, 3)), image)


def test_images_are_scaled_only_where_that_is_said() -> None:
    message = write_sensor({"i": SensorTopic("/i", "Image")}, {"i": np.full((8, 8, 3), 7, np.uint8)}, 1.0, make)
    scaled = read_sensor(SensorTopic("/i", "Image", resize=True), message, (3, 4, 4))
    assert scaled.shape == (3, 4, 4) and (scaled == 7).all()
    with pytest.raises(MessageError, match=r"8 x 8 pixels .* expected 4 x 4 .*resize: true"):
        read_sensor(SensorTopic("/i", "Image"), message, (3, 4, 4))


ARRAY, IMAGE = SensorTopic("/a", "Float64MultiArray"), SensorTopic("/i", "Image")
JOINTS = SensorTopic("/q", "JointState", joints=["x"])


@pytest.mark.parametrize(
    ("sensor", "message", "says"),
    [
        (ARRAY, array(1.0, 2.0), "data has 2 numbers; expected 3"),
        (ARRAY, array(1.0, 2.0, float("nan")), "NaN or infinity"),
        (ARRAY, joints(1.0, x=1.0), "the message is no Float64MultiArray"),
        (JOINTS, array(1.0), "the message is no JointState"),
        (JOINTS, joints(1.0, y=1.0), "no joint x; it has y"),
        (JOINTS, Message(header=None, name=["x", "y"], position=[1.0]), "2 joints, and position of 1"),
        (SensorTopic("/q", "JointState", joints=["x"], frame="base"), joints(1.0, "tool", x=1.0), "frame 'tool'"),
        (IMAGE, Message(encoding="16UC1"), "encoding '16UC1'"),
        (IMAGE, Message(encoding="rgb8", height=2, width=2, step=6, data=b"1"), "1 bytes for 2 rows of 6"),
        (SensorTopic("/i", "CompressedImage"), Message(data=b"no picture"), "no picture can be read"),
    ],
)
def test_what_does_not_fit_is_refused(sensor: SensorTopic, message: Any, says: str) -> None:
    with pytest.raises(MessageError, match=says) as refused:
        read_sensor(sensor, message, (3, 4, 4) if sensor.camera else (3,) if sensor is ARRAY else (1,))
    assert sensor.topic in str(refused.value) and "\n" not in str(refused.value)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(NUMBERS, min_size=7, max_size=7), order=st.sampled_from(["xyzw", "wxyz"]))
def test_actions_survive_the_way_to_the_robot(values: list[float], order: str) -> None:
    action, back = np.array(values), np.zeros(7)
    names = [f"j{index}" for index in range(7)]
    for topic in (
        ActionTopic("/c", "Float64MultiArray", range(7)),
        ActionTopic("/c", "JointTrajectory", [6, 5, 4, 3, 2, 1, 0], joints=names),
    ):
        decode_action(topic, write_action(topic, action, 3.25, 0.05, make), back)
        assert np.array_equal(back, action)
    pose = ActionTopic("/c", "PoseStamped", range(7), quaternion=order, frame="base")
    if np.linalg.norm(action[3:]) < 1e-6:
        with pytest.raises(MessageError, match="no rotation"):
            write_action(pose, action, 3.25, 0.05, make)
        return
    message = write_action(pose, action, 3.25, 0.05, make)
    decode_action(pose, message, back)
    assert message.header.frame_id == "base" and stamp_of(message) == 3.25
    assert np.array_equal(back[:3], action[:3])
    assert np.allclose(back[3:], action[3:] / np.linalg.norm(action[3:]))


@settings(max_examples=60, deadline=None)
@given(vector=st.lists(st.floats(-1.8, 1.8), min_size=3, max_size=3))
def test_rotation_vectors_up_to_half_a_turn_come_back(vector: list[float]) -> None:
    if np.linalg.norm(vector) > 3.1:
        return
    topic, back = ActionTopic("/c", "PoseStamped", range(6)), np.zeros(6)
    decode_action(topic, write_action(topic, np.array([1.0, 2.0, 3.0, *vector]), 0.0, 0.05, make), back)
    assert np.allclose(back, [1.0, 2.0, 3.0, *vector], atol=1e-7)


def test_a_trajectory_has_one_point_a_period_ahead() -> None:
    message = write_action(ActionTopic("/c", "JointTrajectory", [0], joints=["j"]), np.array([0.5]), 1.5, 0.05, make)
    assert message.joint_names == ["j"] and len(message.points) == 1
    ahead = message.points[0].time_from_start
    assert message.points[0].positions == [0.5] and (ahead.sec, ahead.nanosec) == (0, 50_000_000)
