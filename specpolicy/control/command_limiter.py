"""Turns an action into commands at the controller's rate, each within the limits of motion."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.control.action_space import Action, ActionLimits, ActionSpec
from specpolicy.control.interpolation import path
from specpolicy.control.motion_limits import MotionLimits, Orientation


class MotionState(StrEnum):
    """What commands do until the next action."""

    TRACK = "track"
    """They lead to the action, by way of the interpolation."""

    STILL = "still"
    """Absolute entries stop as soon as the limits allow, deltas go straight to what is given: 0, or less of a brake."""


class CommandLimiter:
    """Interpolates and limits, for one episode; remembers the last commands, at rest when the episode begins.

    With an acceleration limit A (per command, as a displacement) a command may only be so large that the robot can
    still come to rest inside its box: from a displacement u it needs u + (u − A) + (u − 2A) + … Then the next command
    can always be max(u − A, 0), so that box, velocity and acceleration hold together at every command.

    Args:
        limits: of motion.
        spec: of actions.
        box: in which every command lies, see :meth:`MotionLimits.box`.
        initial: the action of a robot that has not been sent anything yet, shape ``(dim,)``, inside the box.
        rate_hz: the policy's actions a second.
        observation: the first one.

    Attributes:
        commands_per_action: how many times :meth:`command` is to be called after each :meth:`aim`.

    Raises:
        ValueError: see :meth:`MotionLimits.commands_per_action` and :meth:`MotionLimits.check_start`; or a limit is
            finer than the numbers in which commands are sent.
    """

    def __init__(
        self,
        limits: MotionLimits,
        spec: ActionSpec,
        box: ActionLimits,
        initial: Action,
        rate_hz: float,
        observation: Mapping[str, Any],
    ) -> None:
        limits.check_start(box, initial, observation)
        self._limits, self._spec, self._box = limits, spec, box
        self.commands_per_action = limits.commands_per_action(rate_hz)
        hz = rate_hz * self.commands_per_action
        dim = spec.dim
        self._absolute = np.isin(np.arange(dim), list(spec.absolute_dims))
        self._velocity = np.isin(np.arange(dim), list(spec.velocity_dims))
        self._unit = np.where(self._velocity, 1.0 / hz, 1.0)  # displacement for one unit of the action
        step, velocity = (limits.entries(each, dim, np.inf) for each in ("step", "velocity"))
        self._most = np.minimum(step, velocity / hz)
        self._change = limits.entries("acceleration", dim, np.inf) / hz**2
        # stopping is planned with a little less than the limit, so that rounding a command never needs more
        self._planned = self._change - np.where(self._absolute, 2 * self._resolution(initial), 0.0)
        self._ramp = limits.ramp_s * hz
        self._angles = [_AngleLimit(each, hz) for each in limits.orientations]
        self._turning = sorted(index for each in limits.orientations for index in each.dims)
        # the last three commands, the newest first; what has been displaced by the last one
        self._past = np.stack([initial] * 3)
        self._moved = np.zeros(dim)
        self._begun = 0
        self._observation: Any = observation
        self._state = MotionState.STILL
        self._start, self._end = np.zeros((3, dim)), np.zeros((2, dim))
        self._drawn = np.zeros(dim)

    def _resolution(self, initial: Action) -> NDArray[np.float64]:
        """What the type of commands can tell apart; a robot whose steps vanish in it could not come to rest."""
        box = np.abs(np.stack([self._box.low, self._box.high])).max(0)
        size = np.where(np.isfinite(box), box, np.abs(initial))
        finest = np.spacing(size.astype(self._box.dtype)).astype(np.float64)
        least = np.minimum(self._most, self._change)
        if np.any(vanishing := self._absolute & (least < 4 * finest)):
            index = int(vanishing.argmax())
            raise ValueError(
                f"limits: entry {index} may move or accelerate by {least[index]:.2g} from one command to the next, "
                f"which {self._box.dtype} cannot tell apart at {size[index]:g}; raise the limit or lower controller_hz"
            )
        return finest

    @property
    def last(self) -> Action:
        """The last command as an action at the policy's rate, shape ``(dim,)``."""
        divided = ~self._absolute & ~self._velocity
        return np.where(divided, self._past[0] * self.commands_per_action, self._past[0])

    @property
    def tracks(self) -> bool:
        """Whether commands lead to an action of the policy now."""
        return self._state is MotionState.TRACK

    @property
    def at_rest(self) -> bool:
        """Whether the last command moved nothing."""
        turned = any(each.moved.any() for each in self._angles)
        return not turned and not np.any(np.delete(self._moved, self._turning))

    def observe(self, observation: Any) -> None:
        """Take in what is observed now; the workspace needs it."""
        self._observation = observation

    def aim(self, action: Action, following: Action | None, state: MotionState) -> None:
        """Set what the next commands lead to.

        Args:
            action: to be reached with the last of them, finite, shape ``(dim,)``.
            following: the one after it, if it is known; fixes the speed there.
            state: what its entries mean.
        """
        self._state = state
        count = self.commands_per_action
        now, before, earlier = self._past
        divided = ~self._absolute & ~self._velocity
        with np.errstate(over="ignore", invalid="ignore"):
            speed = np.where(divided, now, now - before) * count
            acceleration = np.where(divided, now - before, now - 2 * before + earlier) * count**2
            at = np.where(divided, 0.0, now)
            beyond = at if following is None else np.where(divided, action + following, following)
            end_speed = np.zeros_like(at) if following is None else (beyond - at) / 2
        self._start, self._end = np.stack([at, speed, acceleration]), np.stack([action, end_speed])
        self._drawn = at
        for each in self._angles:
            each.aim(now, action)

    def command(self, number: int) -> tuple[Action, bool]:
        """Compute the next command.

        Args:
            number: which one since :meth:`aim`, from 0 on; numbers may be skipped, if their time has gone by.

        Returns:
            The command, shape ``(dim,)``, representable in the type in which it is sent; whether the limits (not the
            ramp) changed it.
        """
        share = (number + 1) / self.commands_per_action
        base = np.where(self._absolute, self._past[0], 0.0)
        wanted = self._wanted(share, base)
        ramp = min((self._begun + 1) / self._ramp, 1.0) if self._ramp > 0 else 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            eased = wanted if ramp == 1.0 else base + ramp * (wanted - base)
        eased = np.where(np.isfinite(eased), eased, base)
        low, high = self._bounds(base)
        command = np.clip(eased, low, high)
        limited = bool(np.any(command != eased))
        for each in self._angles:
            command[each.dims], cut = each.turn(share, ramp, self._state)
            limited |= cut
        command = self._rounded(command, low, high)
        return command, limited and self.tracks

    def sent(self, command: Action) -> None:
        """Take note that a command has been sent."""
        base = np.where(self._absolute, self._past[0], 0.0)
        self._moved = (command - base) * self._unit
        for each in self._angles:
            each.sent(command)
        self._past = np.stack([command, self._past[0], self._past[1]])
        self._begun += 1

    def beyond(self, command: Action) -> str | None:
        """Say which limit a command breaks, by another way than the one that it was computed by; None: none.

        Args:
            command: shape ``(dim,)``, finite.
        """
        displacement = (command - np.where(self._absolute, self._past[0], 0.0)) * self._unit
        rounding = 4 * np.spacing(np.abs(np.stack([command, self._past[0]])).max(0).astype(self._box.dtype))
        slack = rounding.astype(np.float64) * self._unit + 1e-9
        for name, broken in (
            ("step or velocity", np.abs(displacement) > self._most * (1 + 1e-9) + slack),
            ("acceleration", self._accelerated(displacement) > self._change * (1 + 1e-9) + slack),
        ):
            broken[self._turning] = False
            if broken.any():
                index = int(broken.argmax())
                return f"the {name} limit of entry {index}"
        return None

    def _accelerated(self, displacement: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much faster the robot becomes; slowing down more than the limit at the workspace's border is allowed."""
        change = np.abs(displacement - self._moved)
        if self._limits.workspace is not None:
            dims = list(self._limits.workspace.dims)
            slower = (np.abs(displacement) <= np.abs(self._moved)) & (displacement * self._moved >= 0)
            change[dims] = np.where(slower[dims], 0.0, change[dims])
        return change

    def _wanted(self, share: float, base: Action) -> Action:
        if self._state is MotionState.STILL:
            divided = ~self._absolute & ~self._velocity
            given = self._end[0]
            return np.where(self._absolute, base, np.where(divided, given / self.commands_per_action, given))
        with np.errstate(over="ignore", invalid="ignore"):
            point = path(self._limits.interpolation, self._start, self._end, share)
            divided = ~self._absolute & ~self._velocity
            wanted = np.where(divided, point - self._drawn, point) if self.commands_per_action > 1 else point
        self._drawn = point
        return wanted

    def _bounds(self, base: Action) -> tuple[Action, Action]:
        """Bounds of the command; never empty, see the class."""
        most, change, planned, moved, box = self._most, self._change, self._planned, self._moved, self._box
        room_up = np.where(self._absolute, box.high - base, np.inf)
        room_down = np.where(self._absolute, base - box.low, np.inf)
        low = np.maximum(np.maximum(-most, moved - change), -largest_step(room_down, planned))
        high = np.minimum(np.minimum(most, moved + change), largest_step(room_up, planned))
        if self._limits.workspace is not None:
            dims = list(self._limits.workspace.dims)
            down, up = self._workspace_room(dims)
            # in this order: where the robot drifted towards the border, the workspace wins over the acceleration
            low[dims], high[dims] = (np.clip(each[dims], down, up) for each in (low, high))
        with np.errstate(over="ignore", invalid="ignore"):
            lowest, highest = base + low / self._unit, base + high / self._unit
        return np.clip(lowest, box.low, box.high), np.clip(highest, box.low, box.high)

    def _workspace_room(self, dims: list[int]) -> tuple[Action, Action]:
        """Bounds of the displacement of the workspace's entries; zero lies between them."""
        workspace = self._limits.workspace
        assert workspace is not None
        position = workspace.position(self._observation)
        if position is None:
            return np.zeros(len(dims)), np.zeros(len(dims))
        scale = np.broadcast_to(np.asarray(workspace.scale, dtype=np.float64), (len(dims),))
        bounds = (np.array([workspace.low, workspace.high]) - position) / scale
        down, up = np.sort(bounds, axis=0)
        change = self._change[dims]
        return -largest_step(np.maximum(-down, 0.0), change), largest_step(np.maximum(up, 0.0), change)

    def _rounded(self, command: Action, low: Action, high: Action) -> Action:
        """The command in the type in which it is sent, rounded towards the inside."""
        dtype = self._box.dtype
        rounded = command.astype(dtype)
        for beyond, towards in ((rounded > high, -np.inf), (rounded < low, np.inf)):
            moved = np.nextafter(rounded, np.array(towards, dtype=dtype))
            rounded = np.where(beyond, moved, rounded)
        return np.clip(rounded.astype(np.float64), self._box.low, self._box.high)


class _AngleLimit:
    """Turns one orientation, by slerp and within its limits."""

    def __init__(self, orientation: Orientation, hz: float) -> None:
        self.dims = list(orientation.dims)
        self._form = orientation.form
        self._most = min(
            np.inf if orientation.step is None else orientation.step,
            np.inf if orientation.velocity is None else orientation.velocity / hz,
        )
        self._change = np.inf if orientation.acceleration is None else orientation.acceleration / hz**2
        self.moved = np.zeros(3)
        self._now: Any = None
        self._pending: tuple[Any, NDArray[np.float64]] = (None, np.zeros(3))
        self._from: Any = None
        self._whole = np.zeros(3)
        self._written = np.zeros(orientation.form.size)

    def aim(self, last: Action, action: Action) -> None:
        self._written = last[self.dims]
        if self._now is None:
            self._now = self._form.rotation(self._written)
        target = self._form.rotation(action[self.dims])
        self._from = self._now
        self._whole = np.zeros(3) if target is None else (target * self._from.inv()).as_rotvec()

    def turn(self, share: float, ramp: float, state: MotionState) -> tuple[Action, bool]:
        """The orientation to send; whether the limits changed it."""
        wanted = np.zeros(3)
        if state is MotionState.TRACK:
            aimed = self._turned(self._from, share * self._whole)
            wanted = ramp * (aimed * self._now.inv()).as_rotvec()
        # clipping to the second ball leaves the first one's bound intact: it moves no two points apart, and the last
        # rotation lies in both
        change = wanted - self.moved
        turned = self.moved + change * min(1.0, self._change / max(float(np.linalg.norm(change)), 1e-300))
        turned = turned * min(1.0, self._most / max(float(np.linalg.norm(turned)), 1e-300))
        if not np.any(turned):
            self._pending = self._now, turned
            return self._written, bool(np.any(wanted))
        self._pending = self._turned(self._now, turned), turned
        written = self._form.write(self._pending[0], self._written)
        return written, bool(np.linalg.norm(turned - wanted) > 1e-12)

    def sent(self, command: Action) -> None:
        self._now, self.moved = self._pending
        self._written = command[self.dims]

    @staticmethod
    def _turned(start: Any, vector: NDArray[np.float64]) -> Any:
        return type(start).from_rotvec(vector) * start


def largest_step(room: NDArray[np.float64], change: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the largest displacement after which the robot can still come to rest within its room.

    Args:
        room: distance to the border, at least 0 or infinite, shape ``(n,)``.
        change: largest change of displacement from one command to the next, above 0 or infinite, shape ``(n,)``.

    Returns:
        The u with u + (u − change) + (u − 2·change) + … = room, terms above 0 only; shape ``(n,)``.
    """
    room = np.maximum(room, 0.0)
    step = room.copy()
    finite = np.isfinite(room) & np.isfinite(change)
    distance, slower = room[finite], change[finite]
    with np.errstate(over="ignore"):
        terms = np.maximum(np.ceil((np.sqrt(1.0 + 8.0 * distance / slower) - 1.0) / 2.0), 1.0)
        step[finite] = distance / terms + slower * (terms - 1.0) / 2.0
    return step
