"""Which topics a policy reads and writes, and what their messages mean; checked before anything is started."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from specpolicy.config import ConfigError, available, config_dir
from specpolicy.control.action_space import ActionLimits, ActionSpec
from specpolicy.policies.observations import ObservationSpec
from specpolicy.utils.checks import check_choice, check_flag, check_integer, check_number, shown
from specpolicy.utils.errors import one_line

SENSOR_FIELDS: Mapping[str, Mapping[str, int | None]] = {
    "Float64MultiArray": {"data": None},
    "JointState": {"position": None, "velocity": None, "effort": None},
    "PoseStamped": {"position": 3, "orientation": 4, "pose": 7},
    "Image": {"image": None},
    "CompressedImage": {"image": None},
}
"""Message types that can be read, with their fields; how many numbers each has, None where the message says."""

ACTION_TYPES = ("Float64MultiArray", "JointTrajectory", "PoseStamped")
"""Message types that actions can be sent as."""

QUATERNIONS = ("xyzw", "wxyz")
"""Order of a quaternion's numbers in observations and actions; messages name theirs."""

_TOPIC = re.compile(r"/?[A-Za-z_~]\w*(/[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class SensorTopic:
    """Where one part of the observation comes from.

    Attributes:
        topic: its name; several parts may come from one topic.
        type: one of :data:`SENSOR_FIELDS`.
        field: of the message; by default the first one of its type.
        joints: names of the joints, in the order of the observation; only for JointState, which needs them.
        quaternion: one of :data:`QUATERNIONS`.
        frame: ``header.frame_id`` that messages must have; None for any.
        resize: scale images to the policy's size; else another size is refused.
        max_age_s: oldest observation allowed, seconds; None: that of the interface.

    Raises:
        ValueError: a setting that is none of these, or that its type does not have.
    """

    topic: str
    type: str
    field: str = ""
    joints: Sequence[str] = ()
    quaternion: str = "xyzw"
    frame: str | None = None
    resize: bool = False
    max_age_s: float | None = None

    def __post_init__(self) -> None:
        _check_topic(self.topic)
        known = SENSOR_FIELDS[check_choice("type", self.type, tuple(SENSOR_FIELDS))]
        object.__setattr__(self, "field", self.field or next(iter(known)))
        check_choice(f"field of a {self.type}", self.field, tuple(known))
        _check_names("joints", self.joints, self.type == "JointState", self.type)
        check_choice("quaternion", self.quaternion, QUATERNIONS)
        check_flag("resize", self.resize)
        if self.max_age_s is not None:
            check_number("max_age_s", self.max_age_s, above=0)

    @property
    def camera(self) -> bool:
        """Whether it gives images."""
        return self.field == "image"

    @property
    def length(self) -> int | None:
        """How many numbers it gives; None where only the message says, and for images."""
        return len(self.joints) if self.joints else SENSOR_FIELDS[self.type][self.field]


@dataclass(frozen=True)
class ActionTopic:
    """Where some entries of the action go.

    Attributes:
        topic: its name.
        type: one of :data:`ACTION_TYPES`. A JointTrajectory has one point, of positions, one period ahead. A
            PoseStamped takes position and quaternion (7 entries) or position and rotation vector in radians (6).
        dims: indices of the entries, in the message's order.
        joints: names of the joints; only for JointTrajectory, which needs one for each entry.
        quaternion: one of :data:`QUATERNIONS`.
        frame: ``header.frame_id`` to send.

    Raises:
        ValueError: a setting that is none of these, or that its type does not have.
    """

    topic: str
    type: str
    dims: Sequence[int]
    joints: Sequence[str] = ()
    quaternion: str = "xyzw"
    frame: str = ""

    def __post_init__(self) -> None:
        _check_topic(self.topic)
        check_choice("type", self.type, ACTION_TYPES)
        object.__setattr__(self, "dims", tuple(check_integer("dims", each, 0) for each in _listed("dims", self.dims)))
        _check_names("joints", self.joints, self.type == "JointTrajectory", self.type)
        if self.joints and len(self.joints) != len(self.dims):
            raise ValueError(f"{self.topic}: {len(self.joints)} joints for {len(self.dims)} entries of the action")
        if self.type == "PoseStamped" and len(self.dims) not in (6, 7):
            raise ValueError(
                f"{self.topic}: a PoseStamped takes 7 entries (position, quaternion) or 6 (position, rotation vector), "
                f"not {len(self.dims)}"
            )
        check_choice("quaternion", self.quaternion, QUATERNIONS)


@dataclass(frozen=True)
class RosInterface:
    """All topics of a robot, as a policy needs them.

    Attributes:
        observations: topic of each part of the observation.
        actions: topics that together take every entry of an action once.
        spec: which entries are deltas, and which are absolute.
        low, high: the limits of each entry, or one number for all; what is sent lies within them.
        max_age_s: a message that is older, by its arrival or by its stamp, is stale; seconds.
        max_ahead_s: a stamp further in the future than this is a fault of somebody's clock; seconds.
        start_timeout_s: how long to wait for the first message of each topic; seconds.

    Raises:
        ValueError: topics with two types, entries that no topic takes or two do, or limits that contradict each other
            or the safe action.
    """

    observations: Mapping[str, SensorTopic]
    actions: Sequence[ActionTopic]
    spec: ActionSpec
    low: float | Sequence[float]
    high: float | Sequence[float]
    max_age_s: float = 0.2
    max_ahead_s: float = 0.05
    start_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_age_s", "start_timeout_s"):
            check_number(name, getattr(self, name), above=0)
        check_number("max_ahead_s", self.max_ahead_s, least=0)
        if not self.observations or not self.actions:
            raise ValueError("a robot needs at least one topic to observe and one to act on")
        types: dict[str, str] = {}
        for sensor in self.observations.values():
            if types.setdefault(sensor.topic, sensor.type) != sensor.type:
                raise ValueError(f"{sensor.topic} is a {types[sensor.topic]} and a {sensor.type}; a topic has one type")
        for action in self.actions:
            if types.setdefault(action.topic, "") or [each.topic for each in self.actions].count(action.topic) > 1:
                raise ValueError(f"{action.topic} is there twice; actions need topics of their own")
        taken = sorted(index for action in self.actions for index in action.dims)
        if taken != list(range(self.spec.dim)):
            raise ValueError(
                f"the topics of actions take entries {taken}; expected each of the {self.spec.dim} entries that "
                "spec describes once"
            )
        ActionLimits.from_space(self.action_space, self.spec)

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """The box of the limits, in the numbers that messages carry."""
        sides = []
        for name in ("low", "high"):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape not in ((), (self.spec.dim,)) or not np.isfinite(value).all():
                raise ValueError(
                    f"{name}={shown(getattr(self, name))}: expected a finite number, or {self.spec.dim} of them"
                )
            sides.append(np.broadcast_to(value, (self.spec.dim,)))
        if wrong := [index for index in range(self.spec.dim) if not sides[0][index] < sides[1][index]]:
            index = wrong[0]
            raise ValueError(
                f"entry {index} of an action: low={sides[0][index]:g} is not below high={sides[1][index]:g}"
            )
        return gymnasium.spaces.Box(sides[0].copy(), sides[1].copy(), dtype=np.float64)

    def check_policy(self, observations: ObservationSpec, action_dim: int) -> None:
        """Refuse a policy that needs other observations, or gives other actions, than the topics have.

        Args:
            observations: what the policy needs.
            action_dim: entries of its actions.

        Raises:
            ValueError: a key is missing or unknown, or a length or kind differs.
        """
        needed, mapped = set(observations.shapes), set(self.observations)
        if needed != mapped:
            faults = [f"no topic gives {', '.join(sorted(needed - mapped))}"] if needed - mapped else []
            faults += [f"the policy does not know {', '.join(sorted(mapped - needed))}"] if mapped - needed else []
            raise ValueError(f"{'; '.join(faults)}. The policy observes {', '.join(observations.shapes)}")
        for key, shape in observations.shapes.items():
            sensor = self.observations[key]
            if sensor.camera != (key in observations.images):
                kind = "images" if key in observations.images else f"{shape[0]} numbers"
                raise ValueError(f"{key}: the policy takes {kind}, and {sensor.topic} is a {sensor.type}")
            if sensor.length is not None and (sensor.length,) != shape:
                raise ValueError(
                    f"{key}: the policy takes {shape[0]} numbers, and {sensor.field} of {sensor.topic} has "
                    f"{sensor.length}"
                )
        if action_dim != self.spec.dim:
            raise ValueError(f"the policy's actions have {action_dim} entries, and spec describes {self.spec.dim}")


def load_interface(name: str) -> RosInterface:
    """Read an interface from a file of plain YAML.

    Args:
        name: one of those in ``configs/ros``, or the path of a file.

    Returns:
        The interface.

    Raises:
        ConfigError: there is no such file, or something in it is wrong; the message says where.
    """
    path = Path(name)
    if not path.suffix:
        path = config_dir() / "ros" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"config={name}: no such interface; known: {', '.join(available('ros'))}, or give the path of a YAML file"
        )
    try:
        read = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, OSError, ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {one_line(error, 200)}") from error
    except Exception as error:  # a YAML error is of a package that OmegaConf brings
        raise ConfigError(f"{path} cannot be read as YAML: {one_line(error, 200)}") from error
    try:
        return interface_from(read)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error


def interface_from(values: Any) -> RosInterface:
    """Make an interface of plain data.

    Args:
        values: the attributes of :class:`RosInterface`, its parts as mappings.

    Returns:
        The interface.

    Raises:
        ValueError: something in it is wrong.
    """
    values = _mapping("an interface", values, RosInterface)
    sensors = values["observations"]
    if not isinstance(sensors, Mapping):
        raise ValueError(f"observations={shown(sensors)}: expected {{name of the policy's: topic}}")
    parts = {str(key): _made(f"observations.{key}", SensorTopic, value) for key, value in sensors.items()}
    actions = [
        _made(f"actions[{index}]", ActionTopic, value)
        for index, value in enumerate(_listed("actions", values["actions"]))
    ]
    return RosInterface(
        **{**values, "observations": parts, "actions": actions, "spec": _made("spec", ActionSpec, values["spec"])}
    )


def _made(where: str, kind: Any, values: Any) -> Any:
    try:
        return kind(**_mapping(where, values, kind))
    except (ValueError, TypeError) as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from error


def _mapping(where: str, values: Any, kind: Any) -> dict[str, Any]:
    """The keyword arguments of a dataclass, none unknown and none that it needs left out."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {shown(values)}; expected a mapping")
    known = [each.name for each in fields(kind)]
    needed = list(known)[: -len(kind.__init__.__defaults__ or ()) or None]
    if unknown := [str(name) for name in values if name not in known]:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return {str(name): value for name, value in values.items()}


def _listed(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name}={shown(value)}: expected a list")
    return value


def _check_topic(topic: Any) -> None:
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        raise ValueError(f"topic={shown(topic)}: expected a name such as /arm/joint_states")


def _check_names(name: str, values: Any, wanted: bool, kind: str) -> None:
    names = [str(each) for each in _listed(name, values)]
    if len(set(names)) < len(names):
        raise ValueError(f"{name}={shown(names)}: a name is there twice")
    if bool(names) != wanted:
        raise ValueError(f"a {kind} {'needs' if wanted else 'has no'} {name}")
