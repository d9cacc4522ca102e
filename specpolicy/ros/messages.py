"""What messages hold, as arrays, and back; by their attributes alone, so that no ROS is needed here."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.control.action_space import Action
from specpolicy.ros.interface import ActionTopic, SensorTopic
from specpolicy.utils.errors import one_line
from specpolicy.utils.extras import require

MakeMessage = Callable[[str], Any]
"""Makes an empty message of a type by its name, ``"JointTrajectoryPoint"`` included."""

_CHANNELS = {
    "rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0,)
}  # fmt: skip
_BYTES = {"rgba8": 4, "bgra8": 4, "mono8": 1}
_LARGEST_IMAGE = 64 * 2**20  # pixels: larger ones are no camera's


class MessageError(ValueError):
    """A message does not hold what its topic is said to give."""


def read_sensor(sensor: SensorTopic, message: Any, shape: Sequence[int]) -> NDArray[Any]:
    """Take a part of the observation out of a message.

    Args:
        sensor: what the topic gives.
        message: of its type.
        shape: of one step of this part: ``(length,)``, or that of an image with its channels first or last.

    Returns:
        Finite numbers in float64, or an image's bytes, of this shape.

    Raises:
        MessageError: another shape, another frame, joints that are not there, or numbers that are not finite.
    """
    header = getattr(message, "header", None)
    if sensor.frame is not None and header is not None and header.frame_id != sensor.frame:
        raise MessageError(f"{sensor.topic}: frame {header.frame_id!r}; expected {sensor.frame!r}")
    try:
        if sensor.camera:
            return _fitted(sensor, _image(sensor, message), tuple(shape))
        numbers = np.asarray(_numbers(sensor, message), dtype=np.float64)
    except (AttributeError, TypeError) as error:
        raise MessageError(f"{sensor.topic}: the message is no {sensor.type} ({one_line(error, 120)})") from error
    if numbers.shape != tuple(shape):
        raise MessageError(f"{sensor.topic}: {sensor.field} has {numbers.size} numbers; expected {shape[0]}")
    if not np.isfinite(numbers).all():
        raise MessageError(f"{sensor.topic}: {sensor.field} holds NaN or infinity; check the sensor")
    return numbers


def write_sensor(parts: Mapping[str, SensorTopic], values: Mapping[str, Any], stamp_s: float, make: MakeMessage) -> Any:
    """Write parts of an observation that share a topic into one message, as a simulator does.

    Args:
        parts: of one topic.
        values: of the whole observation.
        stamp_s: time of the observation, seconds.
        make: makes messages.

    Returns:
        The message.
    """
    first = next(iter(parts.values()))
    message = make(first.type)
    for key, sensor in parts.items():
        value = np.asarray(values[key])
        if sensor.type == "Float64MultiArray":
            message.data = [float(each) for each in value]
        elif sensor.type == "JointState":
            message.name = [*sensor.joints]
            setattr(message, sensor.field, [float(each) for each in value])
        elif sensor.type == "PoseStamped":
            if sensor.field != "orientation":
                _set_position(message, value)
            if sensor.field != "position":
                _set_quaternion(message, value[-4:], sensor.quaternion)
        elif sensor.type == "Image":
            image = np.moveaxis(value, 0, -1) if value.shape[-1] not in (1, 3) else value
            message.height, message.width = image.shape[:2]
            message.encoding, message.step = ("rgb8", 3 * image.shape[1]) if image.shape[2] == 3 else (
                "mono8", image.shape[1]
            )  # fmt: skip
            message.data = np.ascontiguousarray(image).tobytes()
        else:
            message.format, message.data = "png", _png(value)
    if first.type != "Float64MultiArray":
        _set_stamp(message, stamp_s, first.frame or "")
    return message


def write_action(topic: ActionTopic, action: Action, stamp_s: float, period_s: float, make: MakeMessage) -> Any:
    """Write a topic's entries of an action into a message.

    Args:
        topic: which entries, and how.
        action: the whole action, shape ``(dim,)``.
        stamp_s: the time, seconds.
        period_s: time for which the action is meant, seconds.
        make: makes messages.

    Returns:
        The message.

    Raises:
        MessageError: a quaternion of no length.
    """
    values = [float(action[index]) for index in topic.dims]
    message = make(topic.type)
    if topic.type == "Float64MultiArray":
        message.data = values
        return message
    if topic.type == "JointTrajectory":
        point = make("JointTrajectoryPoint")
        point.positions = values
        point.time_from_start.sec, point.time_from_start.nanosec = _split(period_s)
        message.joint_names, message.points = [*topic.joints], [point]
    else:
        _set_position(message, values)
        if len(values) == 7:
            quaternion, order = np.asarray(values[3:]), topic.quaternion
        else:
            quaternion, order = _from_rotation_vector(np.asarray(values[3:])), "xyzw"
        length = float(np.linalg.norm(quaternion))
        if length < 1e-6:
            raise MessageError(f"{topic.topic}: the action's quaternion is {quaternion.tolist()}, which is no rotation")
        _set_quaternion(message, quaternion / length, order)
    _set_stamp(message, stamp_s, topic.frame)
    return message


def decode_action(topic: ActionTopic, message: Any, action: Action) -> None:
    """Put a message's numbers into the entries of an action that its topic takes, as a simulator does.

    Args:
        topic: which entries, and how.
        message: of its type.
        action: shape ``(dim,)``; changed in place.

    Raises:
        MessageError: too many numbers or too few.
    """
    if topic.type == "Float64MultiArray":
        values = list(message.data)
    elif topic.type == "JointTrajectory":
        values = list(message.points[0].positions)
    else:
        position, q = message.pose.position, message.pose.orientation
        quaternion = [q.x, q.y, q.z, q.w] if topic.quaternion == "xyzw" else [q.w, q.x, q.y, q.z]
        turned = quaternion if len(topic.dims) == 7 else _rotation_vector(np.asarray([q.x, q.y, q.z, q.w]))
        values = [position.x, position.y, position.z, *turned]
    if len(values) != len(topic.dims):
        raise MessageError(f"{topic.topic}: {len(values)} numbers; expected {len(topic.dims)}")
    action[list(topic.dims)] = values


def stamp_of(message: Any) -> float | None:
    """Return the time of a message's stamp, seconds; None if it has none or it was never set."""
    header = getattr(message, "header", None)
    if header is None or (header.stamp.sec == 0 and header.stamp.nanosec == 0):
        return None
    return float(header.stamp.sec) + 1e-9 * float(header.stamp.nanosec)


def _numbers(sensor: SensorTopic, message: Any) -> Sequence[float]:
    if sensor.type == "Float64MultiArray":
        return message.data
    if sensor.type == "PoseStamped":
        position, q = message.pose.position, message.pose.orientation
        turned = [q.x, q.y, q.z, q.w] if sensor.quaternion == "xyzw" else [q.w, q.x, q.y, q.z]
        return {
            "position": [position.x, position.y, position.z],
            "orientation": turned,
            "pose": [position.x, position.y, position.z, *turned],
        }[sensor.field]
    places = {name: index for index, name in enumerate(message.name)}
    values = getattr(message, sensor.field)
    if absent := [joint for joint in sensor.joints if joint not in places]:
        raise MessageError(f"{sensor.topic}: no joint {', '.join(absent)}; it has {', '.join(places) or 'none'}")
    if len(values) != len(message.name):
        raise MessageError(f"{sensor.topic}: {len(message.name)} joints, and {sensor.field} of {len(values)}")
    return [values[places[joint]] for joint in sensor.joints]


def _image(sensor: SensorTopic, message: Any) -> NDArray[np.uint8]:
    """The picture with its channels last; red, green, blue."""
    if sensor.type == "CompressedImage":
        pillow = require("PIL.Image", "ros")
        try:
            with pillow.open(io.BytesIO(bytes(message.data))) as picture:
                if picture.width * picture.height > _LARGEST_IMAGE:
                    raise ValueError(f"{picture.width} x {picture.height} pixels")
                return np.asarray(picture.convert("L" if picture.mode == "L" else "RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise MessageError(f"{sensor.topic}: no picture can be read from it ({one_line(error, 120)})") from error
    if message.encoding not in _CHANNELS:
        raise MessageError(f"{sensor.topic}: encoding {message.encoding!r}; expected one of {', '.join(_CHANNELS)}")
    height, width, depth = message.height, message.width, _BYTES.get(message.encoding, 3)
    data = np.frombuffer(bytes(message.data), np.uint8)
    if min(height, width) < 1 or message.step < width * depth or len(data) != message.step * height:
        raise MessageError(
            f"{sensor.topic}: {len(data)} bytes for {height} rows of {message.step} and {width} pixels of {depth}"
        )
    picture = data.reshape(height, message.step)[:, : width * depth].reshape(height, width, depth)
    return picture[:, :, list(_CHANNELS[message.encoding])]


def _fitted(sensor: SensorTopic, image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An image in the policy's size and order of axes."""
    first = shape[-1] not in (1, 3)
    channels, size = (shape[0], shape[1:]) if first else (shape[2], shape[:2])
    image = image[:, :, None] if image.ndim == 2 else image
    if image.shape[2] == 1 and channels == 3:
        image = np.repeat(image, 3, axis=2)
    if image.shape[:2] != size and sensor.resize:
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0))[None])
        scaled = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        image = np.moveaxis(scaled[0].numpy(), 0, 2)
    if image.shape != (*size, channels):
        raise MessageError(
            f"{sensor.topic}: an image of {image.shape[0]} x {image.shape[1]} pixels and {image.shape[2]} channels; "
            f"expected {size[0]} x {size[1]} and {channels}" + ("" if sensor.resize else " (resize: true scales it)")
        )
    return np.ascontiguousarray(np.moveaxis(image, 2, 0) if first else image)


def _png(image: NDArray[np.uint8]) -> bytes:
    last = np.moveaxis(image, 0, -1) if image.shape[-1] not in (1, 3) else image
    written = io.BytesIO()
    require("PIL.Image", "ros").fromarray(last[:, :, 0] if last.shape[2] == 1 else last).save(written, "png")
    return written.getvalue()


def _set_position(message: Any, values: Any) -> None:
    position = message.pose.position
    position.x, position.y, position.z = (float(each) for each in values[:3])


def _set_quaternion(message: Any, values: Any, order: str) -> None:
    q = message.pose.orientation
    numbers = [float(each) for each in values]
    q.x, q.y, q.z, q.w = numbers if order == "xyzw" else [*numbers[1:], numbers[0]]


def _set_stamp(message: Any, stamp_s: float, frame: str) -> None:
    message.header.stamp.sec, message.header.stamp.nanosec = _split(stamp_s)
    message.header.frame_id = frame


def _split(seconds: float) -> tuple[int, int]:
    nanoseconds = round(1e9 * seconds)
    return nanoseconds // 10**9, nanoseconds % 10**9


def _from_rotation_vector(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit quaternion, x y z w."""
    angle = float(np.linalg.norm(vector))
    return np.append(0.5 * np.sinc(angle / (2 * math.pi)) * vector, math.cos(angle / 2))


def _rotation_vector(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radians, of at most half a turn; from a unit quaternion, x y z w."""
    axis, w = (quaternion[:3], quaternion[3]) if quaternion[3] >= 0 else (-quaternion[:3], -quaternion[3])
    sine = float(np.linalg.norm(axis))
    return 2 * axis if sine < 1e-9 else (2 * math.atan2(sine, w) / sine) * axis
