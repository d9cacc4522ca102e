"""Tool Hang: put the hooked frame into its stand, then the tool's ring over the hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .arm import Arm
from .expert import Plan, PlanFailed
from .grasping import pick
from .hook import Hook, thread, turn_back
from .motions import follow, grip, reach
from .poses import UP, Pose, down_facing, hand_for, nearest_rotation, rotation_about, rotation_vector, rotation_z
from .scene import Scene
from .stand import Stand, insert
from .variety import Episode

_POINTING = np.array([0.0, -1.0, 0.0])  # where the hand points while it inserts the frame
_UPRIGHT = np.stack([np.cross(_POINTING, UP), _POINTING, UP], axis=1)

_FACING = np.array([-0.12, 0.0, 1.13])  # where the hand turns the frame, m
_PASSING = np.array([-0.15, -0.12, 1.18])  # how it comes round the stand to the tool
_TURNING = np.array([-0.15, 0.15, 1.26])  # where it turns the tool
_TOOL_HEIGHT = 1.12
_GAP = 0.12  # from the hook's end to where the turned tool is brought first, m

_MISSED = (0.0, 0.0, -0.045)  # the fingers close above what they should grasp
_THINNEST_FRAME, _THINNEST_TOOL = 0.016, 0.02
_STEP = 0.6  # radians that a goal is ahead while the hand turns a long way


class ToolHangExpert:
    """Two grasps and two insertions, always from the same side."""

    name = "tool_hang"
    horizon = 700
    grasps = ("frame", "tool")

    def plan(self, scene: Scene, arms: Sequence[Arm], episode: Episode, rng: np.random.Generator) -> Mapping[int, Plan]:
        """One plan, for the only arm."""
        return {0: _hang(scene, arms[0], episode, rng)}


def _hang(scene: Scene, arm: Arm, episode: Episode, rng: np.random.Generator) -> Plan:
    yield from _assemble(scene, arm, episode, rng)
    yield from _hang_tool(scene, arm, episode, rng)


def _assemble(scene: Scene, arm: Arm, episode: Episode, rng: np.random.Generator) -> Plan:
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
    yield from pick(arm, at_grip, thinnest=_THINNEST_FRAME, beside=_MISSED, slip=slip)
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


def _hang_tool(scene: Scene, arm: Arm, episode: Episode, rng: np.random.Generator) -> Plan:
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
    yield from pick(arm, at_tool, thinnest=_THINNEST_TOOL, beside=_MISSED, slip=slip)
    yield from reach(arm, arm.pose.raised(_TOOL_HEIGHT - arm.pose.position[2]), 0.04, 0.2)
    place = _TURNING + episode.offset(rng)
    yield from follow(arm, turning, at_most=150)
    arm.gain, arm.speed = 2.0, 0.4
    yield from thread(arm, ring, hook)
    arm.speed = 1.0
    yield from turn_back(arm, ring, hook)
    arm.gain = 3.0
    yield from grip(arm, False, 5)
    yield from reach(arm, arm.pose.moved(-0.12 * arm.pose.rotation[:, 2]), 0.03, 0.3, at_most=40)
