"""Tool Hang: put the hooked frame into its stand, then the tool's ring over the hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from specpolicy_envs.experts.base import Arm, EpisodeVariation, Plan, PlanFailed
from specpolicy_envs.experts.geometry import (
    UP,
    Pose,
    Scene,
    Vector,
    down_facing,
    hand_for,
    nearest_rotation,
    rotation_about,
    rotation_vector,
    rotation_z,
)
from specpolicy_envs.experts.primitives import Motion, follow, grip, pick, reach

_RADIUS = 0.0097  # of the ring's opening
_HOOK_TILT = np.radians(60.0)  # of the ring's axis above the arm while the hook's end moves through it
_RESTING_TILT = np.radians(15.0)
_FREE_TILT = np.radians(40.0)  # from here on the ring cannot jam
_AXIS, _ACROSS = np.array([np.cos(_HOOK_TILT), np.sin(_HOOK_TILT)]), np.array([-np.sin(_HOOK_TILT), np.cos(_HOOK_TILT)])
_CORNERS = np.array([[0.0, -0.00375], [-0.0075, 0.01575]])  # of the hook's end: these two pass closest to the ring
_MIDDLE = (_CORNERS @ _ACROSS).mean() * _ACROSS  # of the ring, when it is around the hook's end
_EDGE = _MIDDLE + _RADIUS * _ACROSS  # the ring's inner edge, by then behind the hook's end

_HOOK_READY = 0.028  # the ring waits this far before the hook's end until it is in line
_HOOK_IN_LINE = 0.005
_HOOK_LEVER = 0.03  # metres that a turn of one radian counts for
_THREADED = 0.002
_LAG = 0.002  # how far a turning ring may be from its way at full speed


class Hook:
    """Where the ring has to be, for the hook as it is now.

    Args:
        scene: with the frame.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def before(self, gap: float) -> Pose:
        """The ring tilted, ``gap`` away from being around the hook's end."""
        return self._ring(_MIDDLE + gap * _AXIS, _HOOK_TILT)

    def behind(self, tilt: float) -> Pose:
        """The ring turned back to ``tilt`` (rad) about its inner edge, and pushed inwards as it comes free."""
        free = float(np.clip((np.radians(45) - tilt) / np.radians(30), 0.0, 1.0))
        return self._ring(_EDGE + _RADIUS * np.array([np.sin(tilt), -np.cos(tilt)]) - [0.012 * free, 0.0], tilt)

    def tilt(self, ring: Pose) -> float:
        """Angle of the ring's axis above the arm, rad."""
        _, out, up = self._axes()
        axis = ring.rotation[:, 2]
        return float(np.arctan2(axis @ up, axis @ out))

    def _axes(self) -> tuple[Vector, Vector, Vector]:
        """The arm's end, the direction outwards along the arm, and the one up."""
        end = self._scene.site("frame_hang_site").position
        out = end - self._scene.site("frame_intersection_site").position
        out = out / np.linalg.norm(out)
        up = self._scene.body("frame_root").rotation[:, 2]
        up = up - (up @ out) * out
        return end, out, up / np.linalg.norm(up)

    def _ring(self, point: Vector, tilt: float) -> Pose:
        end, out, up = self._axes()
        axis = np.cos(tilt) * out + np.sin(tilt) * up
        x = np.cross(up, out)
        return Pose(end + point[0] * out + point[1] * up, np.stack([x, np.cross(axis, x), axis], axis=1))


def insert_ring(arm: Arm, ring: Callable[[], Pose], hook: Hook) -> Motion:
    """Lower the held ring over the hook's end, waiting before it for as long as the two are not in line.

    Raises:
        PlanFailed: it does not get there.
    """

    def goal() -> Pose | None:
        now, end = ring(), hook.before(0.0)
        axis = end.rotation[:, 2]
        gap = float((now.position - end.position) @ axis)
        aside = now.distance(end.moved(gap * axis)) + _HOOK_LEVER * now.angle(end)
        if gap < _THREADED:
            return None
        if gap > _HOOK_READY + 0.006 or (gap > 0.01 and aside > _HOOK_IN_LINE):
            wanted = max(gap - 0.015, _HOOK_READY + float(np.clip(3.0 * (aside - 0.01), 0.0, 0.09)))
        else:
            wanted = max(gap - 0.005, 0.0)
        return hand_for(arm.pose, now, hook.before(wanted))

    if not (yield from follow(arm, goal, at_most=180)):
        raise PlanFailed("the ring does not pass the hook's end")
    return True


def turn_back(arm: Arm, ring: Callable[[], Pose], hook: Hook) -> Motion:
    """Turn the held ring behind the hook's end until it can hang there.

    Raises:
        PlanFailed: it jams.
    """

    def goal() -> Pose | None:
        now = ring()
        tilt = hook.tilt(now)
        if tilt < _RESTING_TILT + 0.15:
            return None
        turn = 0.11
        if tilt > _FREE_TILT:  # turned faster than it can follow, the ring wedges itself onto the arm
            lag = now.distance(hook.behind(min(tilt, _HOOK_TILT)))
            turn = 0.07 * float(np.clip(2.0 - lag / _LAG, 0.1, 1.0))
        return hand_for(arm.pose, now, hook.behind(max(tilt - turn, _RESTING_TILT - 0.1)))

    if not (yield from follow(arm, goal, at_most=100)):
        raise PlanFailed("the ring does not turn behind the hook's end")
    return True


_RIM, _BOTTOM = 0.96, 0.805  # heights of the hole's ends, m
_INSERTED = 0.822  # a tip below this height is in, m
_STAND_READY = 0.012  # the tip waits this far above the rim until it is in line
_STAND_IN_LINE = 0.003
_PUSH = 0.02  # how far ahead the goal is on the way down, m
_STAND_TILT = 0.03  # at twice this tilt, rad, nothing is pushed any more
_STAND_LEVER = 0.03  # metres that a turn of one radian counts for


class Stand:
    """The hole that the frame goes into.

    Args:
        scene: with the stand.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    @property
    def hole(self) -> Vector:
        """Middle of the hole at the table's height 0, m, shape ``(3,)``."""
        walls = [self._scene.geom(f"stand_wall{k}").position for k in range(4)]
        return np.array([(walls[1][0] + walls[3][0]) / 2, (walls[0][1] + walls[2][1]) / 2, 0.0])

    @property
    def above(self) -> Vector:
        """A few centimetres above the hole, m, shape ``(3,)``."""
        return self.hole + (_RIM + 0.05) * UP

    def holds_frame(self) -> bool:
        """Whether the frame counts as assembled; the flag is part of the observation."""
        return bool(self._scene.robosuite._check_frame_assembled())


def insert(arm: Arm, tip: Callable[[], Pose], stand: Stand, rotation: np.ndarray) -> Motion:
    """Lower the held frame's tip into the hole, waiting above it for as long as the two are not in line.

    Args:
        arm: the arm that holds the frame.
        tip: the frame's tip with the frame's orientation, live.
        stand: where it goes.
        rotation: the frame's orientation, upright, shape ``(3, 3)``.

    Raises:
        PlanFailed: it does not get in.
    """

    def goal() -> Pose | None:
        now, hole = tip(), stand.hole
        height = float(now.position[2])
        if height < _INSERTED and stand.holds_frame():
            return None
        aside, tilt = float(np.linalg.norm((now.position - hole)[:2])), now.angle(Pose(hole, rotation))
        if height > _RIM - 0.005 and aside + _STAND_LEVER * tilt > _STAND_IN_LINE:
            wanted = _RIM + _STAND_READY + min(0.04, 4.0 * aside)
        else:  # a tilted rod wedges itself into the hole: push less, or pull
            wanted = max(_BOTTOM, height - _PUSH * float(np.clip(2.0 - tilt / _STAND_TILT, -0.5, 1.0)))
        return hand_for(arm.pose, now, Pose(hole + wanted * UP, rotation))

    if not (yield from follow(arm, goal, at_most=160)):
        raise PlanFailed("the frame does not go into its stand")
    return True


_POINTING = np.array([0.0, -1.0, 0.0])  # where the hand points while it inserts the frame
_UPRIGHT = np.stack([np.cross(_POINTING, UP), _POINTING, UP], axis=1)

_FACING = np.array([-0.12, 0.0, 1.13])  # where the hand turns the frame, m
_PASSING = np.array([-0.15, -0.12, 1.18])  # how it comes round the stand to the tool
_TURNING = np.array([-0.15, 0.15, 1.26])  # where it turns the tool
_TOOL_HEIGHT = 1.12
_GAP = 0.12  # from the hook's end to where the turned tool is brought first, m

_BESIDE = (0.0, 0.0, -0.045)  # the fingers close above what they should grasp
_THINNEST_FRAME, _THINNEST_TOOL = 0.016, 0.02
_STEP = 0.6  # radians that a goal is ahead while the hand turns a long way


class ToolHangExpert:
    """Two grasps and two insertions, always from the same side."""

    name = "tool_hang"
    horizon = 700
    grasps = ("frame", "tool")

    def plan(
        self, scene: Scene, arms: Sequence[Arm], episode: EpisodeVariation, rng: np.random.Generator
    ) -> Mapping[int, Plan]:
        """One plan, for the only arm."""
        return {0: _hang(scene, arms[0], episode, rng)}


def _hang(scene: Scene, arm: Arm, episode: EpisodeVariation, rng: np.random.Generator) -> Plan:
    yield from _assemble(scene, arm, episode, rng)
    yield from _hang_tool(scene, arm, episode, rng)


def _assemble(scene: Scene, arm: Arm, episode: EpisodeVariation, rng: np.random.Generator) -> Plan:
    stand = Stand(scene)

    def tip() -> Pose:
        return Pose(scene.site("frame_tip_site").position, scene.body("frame_root").rotation)

    def at_grip() -> Pose:
        across = scene.body("frame_root").rotation[:, 0]
        return Pose(scene.geom("frame_grip_frame").position, down_facing(across if across[1] > 0 else -across))

    def facing() -> Pose | None:
        """The frame held level, its tip turned to where the hand will not point."""
        ahead = -tip().rotation[:, 2]
        missing = np.arctan2(-_POINTING[1], -_POINTING[0]) - np.arctan2(ahead[1], ahead[0])
        missing = (missing + np.pi) % (2 * np.pi) - np.pi
        if abs(missing) < 0.25:
            return None
        if missing < -_STEP:  # the other way round would end at the wrist's limit
            missing += 2 * np.pi
        turn = rotation_z(float(np.clip(missing, -_STEP, _STEP)))
        return Pose(place, down_facing(turn @ arm.pose.rotation[:, 0]))

    slip = episode.slip("frame")
    yield from pick(arm, at_grip, thinnest=_THINNEST_FRAME, beside=_BESIDE, slip=slip)
    yield from reach(arm, arm.pose.raised(0.2), 0.03, 0.2)
    place = _FACING + episode.offset(rng)
    yield from follow(arm, facing, at_most=80)
    upright = Pose(stand.above, _UPRIGHT)
    yield from reach(arm, lambda: hand_for(arm.pose, tip(), upright), 0.012, 0.08, at_most=120)
    arm.gain = 2.0
    yield from insert(arm, tip, stand, _UPRIGHT)
    arm.gain = 3.0
    yield from grip(arm, False, 6)
    if not stand.holds_frame():
        raise PlanFailed("the frame falls out of its stand")
    yield from reach(arm, arm.pose.moved(-0.12 * _POINTING), 0.03, 0.3)


def _hang_tool(scene: Scene, arm: Arm, episode: EpisodeVariation, rng: np.random.Generator) -> Plan:
    hook = Hook(scene)

    def tool() -> Pose:
        return scene.body("tool_root")

    def ring() -> Pose:
        return Pose(scene.site("tool_hole1_center").position, tool().rotation)

    def at_tool() -> Pose:
        across = tool().rotation[:, 1]
        turned = nearest_rotation([down_facing(across), down_facing(-across)], arm.pose.rotation)
        return Pose(tool().position, turned)

    def turning() -> Pose | None:
        """The tool on its way to above the hook; turned first, to the side where the hand has room."""
        now, end = ring(), hook.before(_GAP)
        turn = rotation_vector(now.rotation, end.rotation)
        angle = float(np.linalg.norm(turn))
        if angle < 0.15 and now.distance(end) < 0.02:
            return None
        if angle <= _STEP:
            return hand_for(arm.pose, now, end)
        if angle > 2.0 and turn[2] > 0:  # the shorter way round would end at the wrist's limit
            turn, angle = turn * (1 - 2 * np.pi / angle), 2 * np.pi - angle
        return Pose(place, rotation_about(turn / angle, _STEP) @ arm.pose.rotation)

    yield from reach(arm, Pose(_PASSING + episode.offset(rng), down_facing([0.0, 1.0, 0.0])), 0.05, 0.4)
    slip = episode.slip("tool")
    yield from pick(arm, at_tool, thinnest=_THINNEST_TOOL, beside=_BESIDE, slip=slip)
    yield from reach(arm, arm.pose.raised(_TOOL_HEIGHT - arm.pose.position[2]), 0.04, 0.2)
    place = _TURNING + episode.offset(rng)
    yield from follow(arm, turning, at_most=150)
    arm.gain, arm.speed = 2.0, 0.4
    yield from insert_ring(arm, ring, hook)
    arm.speed = 1.0
    yield from turn_back(arm, ring, hook)
    arm.gain = 3.0
    yield from grip(arm, False, 5)
    yield from reach(arm, arm.pose.moved(-0.12 * arm.pose.rotation[:, 2]), 0.03, 0.3, at_most=40)
