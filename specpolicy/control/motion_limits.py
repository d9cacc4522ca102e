"""Limits of motion: how far, how fast and where a robot may be told to go, and at which rate it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.control.action_space import Action, ActionLimits, ActionSpec
from specpolicy.control.interpolation import Interpolation, OrientationForm
from specpolicy.utils.checks import check_choice, check_number, shown

PerEntry = float | Sequence[float | None] | None
"""One number for every entry of an action, a number (or None) for each, or None: unlimited."""


@dataclass(frozen=True)
class Orientation:
    """Absolute entries of an action that are one orientation: interpolated by slerp, limited by angle.

    Attributes:
        dims: indices of its entries, in order.
        form: ``"rotation_vector"`` (3, radians), ``"euler_xyz"`` (3, radians, R = Rx·Ry·Rz) or ``"quaternion"`` (4:
            x, y, z, w; normalized when it is sent).
        step: largest angle from one command to the next, radians.
        velocity: rad/s.
        acceleration: rad/s².

    Raises:
        ValueError: another form, another number of entries, or a limit that is not positive.
    """

    dims: Sequence[int]
    form: OrientationForm = OrientationForm.ROTATION_VECTOR
    step: float | None = None
    velocity: float | None = None
    acceleration: float | None = None

    def __post_init__(self) -> None:
        form = OrientationForm(check_choice("limits: an orientation's form", self.form, [*OrientationForm]))
        object.__setattr__(self, "form", form)
        if len(self.dims) != form.size:
            raise ValueError(
                f"limits: an orientation of form {form.value} has dims={list(self.dims)}; expected {form.size} indices"
            )
        for name in ("step", "velocity", "acceleration"):
            if getattr(self, name) is not None:
                check_number(f"limits: an orientation's {name}", getattr(self, name), above=0)


@dataclass(frozen=True)
class Workspace:
    """A box for the observed position of what *delta* entries move; absolute entries have ``low`` and ``high``.

    A command is cut so that observed position + scale · displacement stays inside; from outside it may only come back.
    Where the position is not observed (NaN, a lost sensor), these entries stand still.

    Attributes:
        observation: name of the observation that has the position, of as many numbers as there are ``dims``.
        dims: entries of an action, all deltas, that move it, in the order of the position's coordinates.
        low, high: the box, in the position's units.
        scale: units of position for one unit of action, one number or one for each entry; negative if they run in
            opposite directions.

    Raises:
        ValueError: the lengths differ, a lower bound is not below its upper one, or a scale is zero.
    """

    observation: str
    dims: Sequence[int]
    low: Sequence[float]
    high: Sequence[float]
    scale: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        count = len(self.dims)
        for name in ("low", "high"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"limits: the workspace's {name} has {len(getattr(self, name))} values for {count}")
            for value in getattr(self, name):
                check_number(f"limits: the workspace's {name}", value)
        for index, low, high in zip(self.dims, self.low, self.high, strict=True):
            if not low < high:
                raise ValueError(f"limits: the workspace of entry {index} has low={low:g}, high={high:g}; low < high")
        scales = [self.scale] if isinstance(self.scale, int | float) else list(self.scale)
        if len(scales) not in (1, count) or not all(check_number("limits: scale", each) != 0 for each in scales):
            raise ValueError(f"limits: scale={shown(self.scale)}; expected a number that is not 0, or {count} of them")

    def position(self, observation: Any) -> NDArray[np.float64] | None:
        """Read the position.

        Args:
            observation: whatever the environment gave; ``{name: array}`` is expected.

        Returns:
            Shape ``(len(dims),)``; None if it is not there, or not finite.
        """
        named = observation if isinstance(observation, Mapping) else {"observation": observation}
        try:
            position = np.asarray(named[self.observation], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            return None
        return position if position.shape == (len(self.dims),) and np.isfinite(position).all() else None


@dataclass(frozen=True)
class MotionLimits:
    """What every command obeys, whatever a policy asks for and whatever a guard responds.

    A command's *displacement* is: of an absolute entry, its difference from the command before; of a delta, itself; of
    a velocity (:attr:`ActionSpec.velocity_dims`), itself over the controller's rate. Limits are in the action's units,
    for each entry one number or None; None altogether: unlimited. Standing still obeys them, too: with a limit of
    acceleration a robot that holds or stops slows down as fast as the limit allows, and before the border of its box.

    Attributes:
        low, high: box for the entries; the environment's own holds as well.
        step: largest displacement of one command.
        velocity: largest displacement in a second.
        acceleration: largest change of velocity in a second.
        ramp_s: at the start, the share of each wanted displacement that is sent rises from 0 to 1 in so many seconds.
        controller_hz: commands a second, a multiple of the policy's actions a second; None: one command an action.
        interpolation: of commands between actions, see :class:`Interpolation`.
        orientations: entries that are orientations; none of the limits by entry may be given for them.
        workspace: box for an observed position that delta entries move.

    Raises:
        ValueError: a number that is not positive, limits that contradict each other, or an entry that is named twice.
    """

    low: PerEntry = None
    high: PerEntry = None
    step: PerEntry = None
    velocity: PerEntry = None
    acceleration: PerEntry = None
    ramp_s: float = 0.0
    controller_hz: float | None = None
    interpolation: Interpolation = Interpolation.LINEAR
    orientations: Sequence[Orientation] = ()
    workspace: Workspace | None = None

    def __post_init__(self) -> None:
        interpolation = check_choice("limits: interpolation", self.interpolation, [*Interpolation])
        object.__setattr__(self, "interpolation", Interpolation(interpolation))
        check_number("limits: ramp_s", self.ramp_s, least=0)
        if self.controller_hz is not None:
            check_number("limits: controller_hz", self.controller_hz, above=0)
        lengths = {}
        for name in ("low", "high", "step", "velocity", "acceleration"):
            value = getattr(self, name)
            positive = {} if name in ("low", "high") else {"above": 0.0}
            if isinstance(value, Sequence) and not isinstance(value, str):
                lengths[name] = len(value)
            for each in value if name in lengths else [value]:
                if each is not None:
                    check_number(f"limits: {name}", each, **positive)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"limits: {_listed(lengths)} values; expected as many as an action has entries, in each")
        for index in range(max(lengths.values(), default=1)):
            low, high = _entry(self.low, index), _entry(self.high, index)
            if low is not None and high is not None and low > high:
                raise ValueError(f"limits: low={low:g} lies above high={high:g} in entry {index}; exchange them")
        named = [index for each in self.orientations for index in each.dims]
        if len(named) != len(set(named)):
            raise ValueError(f"limits: the orientations name an entry twice: {named}")
        for index in named:
            for name in lengths if lengths else ():
                if index < lengths[name] and getattr(self, name)[index] is not None:
                    raise ValueError(
                        f"limits: entry {index} belongs to an orientation, whose angle is limited; set {name} there to "
                        "null, and give the orientation its own"
                    )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults, as plain data for a record."""
        return {
            field.name: _plain(getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    def commands_per_action(self, rate_hz: float) -> int:
        """Count the commands of each action.

        Args:
            rate_hz: the policy's actions a second.

        Returns:
            At least 1.

        Raises:
            ValueError: the controller's rate is no multiple of it.
        """
        if self.controller_hz is None:
            return 1
        ratio = self.controller_hz / rate_hz
        if ratio < 0.5 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise ValueError(
                f"limits: controller_hz={self.controller_hz:g} is no multiple of the policy's {rate_hz:g} Hz; take "
                f"{rate_hz * max(round(ratio), 1):g}"
            )
        return round(ratio)

    def box(self, limits: ActionLimits, spec: ActionSpec) -> ActionLimits:
        """Narrow an environment's limits down to these, and check everything against the action's description.

        Args:
            limits: of the environment.
            spec: of its actions.

        Returns:
            The box in which every command lies.

        Raises:
            ValueError: another number of entries; boxes that do not overlap, or in which nothing stands still; an
                entry of the wrong kind in an orientation or in the workspace; or actions that are integers.
        """
        if limits.dtype.kind != "f":
            raise ValueError(f"limits: actions of type {limits.dtype} cannot be limited; expected floating-point ones")
        low = np.maximum(limits.low, self.entries("low", spec.dim, -np.inf))
        high = np.minimum(limits.high, self.entries("high", spec.dim, np.inf))
        for name in ("step", "velocity", "acceleration"):
            self.entries(name, spec.dim, np.inf)
        # the nearest numbers inside, in the type in which actions are sent
        low, high = _inward(low, limits.dtype, np.inf), _inward(high, limits.dtype, -np.inf)
        for index in range(spec.dim):
            still = 0.0 if index in spec.delta_dims else None
            if low[index] > high[index]:
                raise ValueError(
                    f"limits: the box of entry {index} and the environment's, [{limits.low[index]:g}, "
                    f"{limits.high[index]:g}], have nothing in common; nothing could be sent"
                )
            if still is not None and not low[index] <= still <= high[index]:
                raise ValueError(
                    f"limits: entry {index} is a delta, and 0 (standstill) lies outside [{low[index]:g}, "
                    f"{high[index]:g}]; a box of positions is a workspace"
                )
        for orientation in self.orientations:
            wrong = [index for index in orientation.dims if index not in spec.absolute_dims]
            if wrong:
                raise ValueError(
                    f"limits: entry {wrong[0]} of an orientation is not in absolute_dims={list(spec.absolute_dims)}; "
                    "differences of orientations need no slerp, and have limits as other entries"
                )
            reach = orientation.form.reach
            if any(low[index] > -reach or high[index] < reach for index in orientation.dims):
                raise ValueError(
                    f"limits: the environment's box cuts the orientation in entries {list(orientation.dims)}; expected "
                    f"room for ±{reach:.3g}"
                )
        if self.workspace is not None:
            wrong = [index for index in self.workspace.dims if index not in spec.delta_dims]
            if wrong or len(set(self.workspace.dims)) != len(self.workspace.dims):
                raise ValueError(
                    f"limits: the workspace's dims={list(self.workspace.dims)}; expected delta entries, each once; "
                    "absolute entries have low and high"
                )
        return ActionLimits(low, high, limits.tolerance, limits.dtype)

    def entries(self, name: str, dim: int, unlimited: float) -> NDArray[np.float64]:
        """Write out a limit for each entry.

        Args:
            name: ``"low"``, ``"high"``, ``"step"``, ``"velocity"`` or ``"acceleration"``.
            dim: entries of an action.
            unlimited: stands for None.

        Returns:
            Shape ``(dim,)``; entries of orientations are unlimited.

        Raises:
            ValueError: it has another number of entries.
        """
        value: PerEntry = getattr(self, name)
        if isinstance(value, Sequence):
            if len(value) != dim:
                raise ValueError(f"limits: {name} has {len(value)} values; the action has {dim} entries")
            out = np.array([unlimited if each is None else each for each in value], dtype=np.float64)
        else:
            out = np.full(dim, unlimited if value is None else value, dtype=np.float64)
        for orientation in self.orientations:
            if any(not 0 <= index < dim for index in orientation.dims):
                raise ValueError(f"limits: an orientation names {list(orientation.dims)} of {dim} entries")
            out[list(orientation.dims)] = unlimited
        return out

    def check_start(self, box: ActionLimits, initial: Action, observation: Mapping[str, Any]) -> None:
        """Check that a robot may begin where it is.

        Args:
            box: see :meth:`box`.
            initial: the action of a robot that has not been sent anything yet, shape ``(dim,)``.
            observation: the first one.

        Raises:
            ValueError: it begins outside its box or workspace, or the position is not observed.
        """
        outside = [index for index in range(len(initial)) if not box.low[index] <= initial[index] <= box.high[index]]
        if outside:
            index = outside[0]
            raise ValueError(
                f"limits: the robot begins at {initial[index]:g} in entry {index}, outside its box "
                f"[{box.low[index]:g}, {box.high[index]:g}]; bring it inside before the start, or widen the box"
            )
        for orientation in self.orientations:
            if orientation.form is OrientationForm.QUATERNION and not np.any(initial[list(orientation.dims)]):
                raise ValueError(f"limits: the initial quaternion in entries {list(orientation.dims)} is zero")
        if self.workspace is None:
            return
        position = self.workspace.position(observation)
        if position is None:
            raise ValueError(
                f"limits: the workspace needs {len(self.workspace.dims)} finite numbers in the observation "
                f"{self.workspace.observation!r}; the environment observes {', '.join(observation)}"
            )
        if np.any(position < self.workspace.low) or np.any(position > self.workspace.high):
            raise ValueError(
                f"limits: the robot begins at {shown(position.round(4).tolist())}, outside its workspace; bring it "
                "inside before the start, or widen the workspace"
            )


def _inward(bound: NDArray[np.float64], dtype: np.dtype[Any], towards: float) -> NDArray[np.float64]:
    """The nearest number of ``dtype`` at or inside of each bound."""
    with np.errstate(over="ignore"):
        rounded = bound.astype(dtype)
        beyond = rounded < bound if towards > 0 else rounded > bound
        moved = np.nextafter(rounded, np.array(towards, dtype=dtype))
    return np.where(beyond, moved, rounded).astype(np.float64)


def _entry(value: PerEntry, index: int) -> float | None:
    return value[index] if isinstance(value, Sequence) else value


def _listed(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} has {count}" for name, count in lengths.items())


def _plain(value: Any) -> Any:
    if isinstance(value, Orientation | Workspace):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, str):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, Sequence) else value
