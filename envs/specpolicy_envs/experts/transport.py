"""Transport: one arm uncovers the hammer and hands it to the other, which has cleared its bin of trash meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specpolicy_envs.experts.base import Arm, EpisodeVariation, Plan, PlanFailed
from specpolicy_envs.experts.geometry import (
    Matrix,
    Pose,
    Scene,
    Vector,
    down_facing,
    nearest_rotation,
    rotation_about,
    rotation_z,
)
from specpolicy_envs.experts.primitives import Motion, follow, grip, pick, reach

THINNEST = 0.02  # opening of a hand below which the handle is not between its fingers, m

_THICKEST = 0.05
_REACH = 0.13  # a hand that holds it is nearer to its middle than this, m
_TABLE = 0.8  # m


class Hammer:
    """The hammer, read live.

    Which of its ends has the head makes no difference to either arm.

    Args:
        scene: with the hammer.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    @property
    def middle(self) -> Vector:
        """Middle of the handle, m, shape ``(3,)``."""
        return self._scene.body("payload_root").position

    @property
    def along(self) -> Vector:
        """Unit vector along the handle, towards the receiving arm, shape ``(3,)``."""
        axis = self._scene.body("payload_root").rotation[:, 2]
        return axis if axis[1] > 0 else -axis

    def at(self, part: float) -> Vector:
        """The point of the handle ``part`` metres from its middle towards the receiving arm, m, shape ``(3,)``."""
        return self.middle + part * self.along

    def is_held_by(self, arm: Arm) -> bool:
        """Whether the fingers have something as thick as the handle between them, and the hammer is there."""
        near = float(np.linalg.norm(self.middle - arm.pose.position)) < _REACH
        return near and arm.closed and THINNEST < arm.opening < _THICKEST

    def check_in_reach(self) -> None:
        """Give up when no hand can get at it any more.

        Raises:
            PlanFailed: it has fallen between the tables.
        """
        if self.middle[2] < _TABLE:
            raise PlanFailed("the hammer fell between the tables")


@dataclass
class Handover:
    """What the arms' two plans know of each other; all of it can be seen.

    Attributes:
        place: of the giving hand at the handover, m, shape ``(3,)``.
        offered: the giving hand is nearly there, with the hammer.
        taken: the receiving fingers have closed around the handle.
        freed: the giving fingers have opened.
    """

    place: Vector
    offered: bool = False
    taken: bool = False
    freed: bool = False


_HANDOVER = np.array([0.0, -0.085, 1.05])  # the giving hand, m: the receiving one reaches as far as it can
_NEARLY_THERE = 0.1  # metres from there, the receiving hand begins to come near
_GIVEN, _TAKEN = 0.0, 0.075  # where the hands hold the handle, m from its middle towards the receiving arm
_READY = np.array([0.0, 0.21, 0.14])  # where the receiving hand waits, m from the giving one
_ATTEMPTS = 3

_STOOP = np.radians(22)  # a hand deep in a bin leans back to its own base; upright, its wrist would be singular
_GIVING_LEAN, _TAKING_LEAN = np.radians(3), np.radians(25)  # leaning ahead, a hand reaches further
_STRETCH = (-0.4, -0.15)  # where the giving hand changes from the one to the other, m along y

_LID_PLACE = np.array([-0.16, -0.45, 0.875])  # its knob is let go a few centimetres above the table, m
_OVER_BIN = 1.15  # from here the hammer is dropped, m
_TRASH_DROP = np.array([0.0, 0.0, 0.22])  # m above the bottom of its bin

_THINNEST_LID, _THINNEST_TRASH = 0.012, 0.03
_BESIDE = (0.0, 0.0, -0.05)  # the fingers close above what they should grasp
_TOLERANCE, _ALLOWANCE = 0.009, 0.016
_FIRM = 8  # steps until fingers hold firmly
_STEP = 1 / 60  # metres that a goal is ahead for full speed
_X, _Y = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])


class TransportExpert:
    """Both arms at work at once: the left one gets the hammer, the right one throws the trash away and takes it."""

    name = "transport"
    horizon = 700
    grasps = ("lid", "hammer", "trash")

    def plan(
        self, scene: Scene, arms: Sequence[Arm], episode: EpisodeVariation, rng: np.random.Generator
    ) -> Mapping[int, Plan]:
        """One plan for each arm."""
        hammer, handover = Hammer(scene), Handover(_HANDOVER + episode.offset(rng))
        return {
            0: _give(scene, arms[0], hammer, handover, episode, rng),
            1: _receive(scene, arms[1], hammer, handover, episode, rng),
        }


def _give(
    scene: Scene, arm: Arm, hammer: Hammer, handover: Handover, episode: EpisodeVariation, rng: np.random.Generator
) -> Plan:
    yield from _remove_lid(scene, arm, episode, rng)
    part = _GIVEN + rng.uniform(-0.004, 0.004)
    slip = episode.slip("hammer")

    def at_handle() -> Pose:
        return Pose(hammer.at(part), _across(hammer.along, arm.pose.rotation, -_STOOP)).moved([0.0, 0.0, -0.004])

    def offer() -> Pose:
        straighten = rotation_z(np.pi / 2 - np.arctan2(hammer.along[1], hammer.along[0]))
        lean = float(np.interp(arm.pose.position[1], _STRETCH, (-_STOOP, _GIVING_LEAN)))
        return Pose(handover.place, rotation_about(_X, lean) @ down_facing(straighten @ arm.pose.rotation[:, 0]))

    while not hammer.is_held_by(arm):
        hammer.check_in_reach()
        arm.noise = 1.0
        arm.closed = False
        yield from reach(arm, lambda: at_handle().moved([0.0, 0.0, 0.2]), 0.06, 0.4)
        yield from pick(
            arm,
            at_handle,
            thinnest=THINNEST,
            beside=_BESIDE,
            height=0.12,
            tolerance=_TOLERANCE,
            allowance=_ALLOWANCE,
            slip=slip,
        )
        slip = None
        arm.noise = 0.4
        yield from _rise(arm, 0.22)
        yield from reach(arm, offer, _NEARLY_THERE, 0.5)
    handover.offered = True
    while not handover.taken:
        hammer.check_in_reach()
        arm.goal = offer()
        yield
    arm.noise = 1.0
    yield from grip(arm, False, 3)
    handover.freed = True
    yield from reach(arm, arm.pose.moved([0.0, -0.12, 0.1]), 0.03, 0.3)


def _remove_lid(scene: Scene, arm: Arm, episode: EpisodeVariation, rng: np.random.Generator) -> Motion:
    upright = _across(_Y, arm.pose.rotation)
    slip = episode.slip("lid")

    def at_knob() -> Pose:
        return Pose(scene.geom("transport_start_bin_lid_handle").position, upright)

    while not (arm.closed and arm.opening > _THINNEST_LID):
        yield from pick(
            arm,
            at_knob,
            thinnest=_THINNEST_LID,
            beside=_BESIDE,
            height=0.06 + rng.uniform(0, episode.jitter),
            tolerance=_TOLERANCE,
            allowance=_ALLOWANCE,
            slip=slip,
        )
        slip = None
        yield from reach(arm, arm.pose.moved([-0.03, 0.0, 0.06]), 0.04, 0.3)
    place = Pose(_LID_PLACE + episode.offset(rng), upright)
    yield from reach(arm, place.moved([0.08, 0.0, 0.11]), 0.03, 0.3)
    yield from reach(arm, place, 0.025, 0.3)
    yield from grip(arm, False, 3)
    return (yield from reach(arm, arm.pose.raised(0.06), 0.03, 0.3))


def _receive(
    scene: Scene, arm: Arm, hammer: Hammer, handover: Handover, episode: EpisodeVariation, rng: np.random.Generator
) -> Plan:
    yield from _throw_trash_away(scene, arm, episode, rng)
    leant = rotation_about(_X, -_TAKING_LEAN) @ _across(_Y, arm.pose.rotation)
    yield from reach(arm, Pose(handover.place, leant).moved(_READY), 0.03, 0.2)
    while not handover.offered:
        yield
    yield from _take(arm, hammer, _TAKEN + rng.uniform(-0.004, 0.004))
    arm.noise = 0.4
    handover.taken = True
    while not handover.freed:
        yield
    bottom = scene.geom("transport_target_bin_base").position

    def over_bin() -> Pose:
        held = arm.pose.position - hammer.middle
        return Pose(np.array([bottom[0] + held[0], bottom[1] + held[1], _OVER_BIN]), leant)

    yield from reach(arm, arm.pose.moved([-0.03, 0.06, 0.06]), 0.04, 0.6)
    yield from reach(arm, over_bin, 0.03, 0.4)
    yield from grip(arm, False, _FIRM)
    yield from reach(arm, arm.pose.raised(0.08), 0.04, 0.5)


def _take(arm: Arm, hammer: Hammer, part: float) -> Motion:
    """Grasp the handle while the other hand holds it; follow it until the fingers have closed."""

    def at_handle(before: float = 0.0) -> Callable[[], Pose]:
        def goal() -> Pose:
            hammer.check_in_reach()
            turned = _across(hammer.along, arm.pose.rotation, -_TAKING_LEAN)
            return Pose(hammer.at(part) - before * turned[:, 2], turned)

        return goal

    for _ in range(_ATTEMPTS):
        yield from reach(arm, at_handle(0.06), 0.025, 0.15, at_most=60)
        yield from reach(arm, at_handle(), 0.01, 0.1, at_most=40)
        arm.closed = True
        yield from follow(arm, at_handle(), at_most=_FIRM)
        if hammer.is_held_by(arm):
            return True
        yield from grip(arm, False, 5)
    raise PlanFailed(f"the hand closed {_ATTEMPTS} times and did not take the hammer")


def _throw_trash_away(scene: Scene, arm: Arm, episode: EpisodeVariation, rng: np.random.Generator) -> Motion:
    slip = episode.slip("trash")

    def at_trash() -> Pose:
        trash = scene.body("trash_main")
        sides = (trash.rotation[:, 0], rotation_z(np.pi / 2) @ trash.rotation[:, 0])
        return Pose(trash.position, _across(max(sides, key=lambda side: abs(side[1])), arm.pose.rotation, _STOOP))

    while not (arm.closed and arm.opening > _THINNEST_TRASH):
        arm.closed = False
        yield from reach(arm, lambda: at_trash().moved([0.0, 0.0, 0.2]), 0.06, 0.4)
        yield from pick(
            arm,
            at_trash,
            thinnest=_THINNEST_TRASH,
            beside=_BESIDE,
            height=0.12 + rng.uniform(0, episode.jitter),
            tolerance=_TOLERANCE,
            allowance=_ALLOWANCE,
            slip=slip,
        )
        slip = None
        yield from _rise(arm, 0.2)
    over_bin = scene.geom("transport_trash_bin_base").position + _TRASH_DROP + episode.offset(rng)
    yield from reach(arm, Pose(over_bin, _across(_Y, arm.pose.rotation)), 0.04, 0.4)
    return (yield from grip(arm, False, 3))


def _across(axis: Vector, hand: Matrix, lean: float = 0.0) -> Matrix:
    """A hand that closes across ``axis``, leant towards +y by ``lean`` (rad), as near as can be to how it is."""
    closing = np.array([axis[1], -axis[0], 0.0]) * (1.0 if axis[1] > 0 else -1.0)
    turn = rotation_about(closing / np.linalg.norm(closing), lean)
    return nearest_rotation([turn @ down_facing(closing), turn @ down_facing(-closing)], hand)


def _rise(arm: Arm, height: float) -> Motion:
    """Straight up, and not aside: what the hand holds would catch at a wall of the bin."""
    start = arm.pose

    def ahead() -> Pose | None:
        missing = start.raised(height).position - arm.pose.position
        step = np.array([2 * missing[0], 2 * missing[1], min(missing[2], _STEP)])
        return Pose(arm.pose.position + step, start.rotation) if missing[2] > 0.03 else None

    return follow(arm, ahead, at_most=60)
