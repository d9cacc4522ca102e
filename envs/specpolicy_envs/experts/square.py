"""Square: grasp the nut by its handle, lower it over the square peg, let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from specpolicy_envs.experts.base import Arm, EpisodeVariation, Plan, PlanFailed
from specpolicy_envs.experts.geometry import UP, Pose, Scene, down_facing, hand_for, nearest_rotation, rotation_z
from specpolicy_envs.experts.primitives import approach_height, follow, grip, pick, reach

_HANDLE = 0.057  # from the nut's middle to where its handle is grasped, m, along the nut's x axis
_THINNEST = 0.02
_BESIDE = (0.0, 0.0, -0.045)  # the fingers close above the handle
_ATTEMPTS = 3
_PEG_TOP = 0.1  # above the peg's frame, m
_YAWS = (np.pi / 2, -np.pi / 2, np.pi)  # a handle that points to +x is out of the hand's reach


class SquareExpert:
    """One grasp, one placement; the nut's sides lie along the peg's, whichever of three quarter turns is nearest."""

    name = "square"
    horizon = 400
    grasps = ("nut",)

    def plan(
        self, scene: Scene, arms: Sequence[Arm], episode: EpisodeVariation, rng: np.random.Generator
    ) -> Mapping[int, Plan]:
        """One plan, for the only arm."""
        return {0: _put_nut_over_peg(scene, arms[0], episode, rng)}


def _put_nut_over_peg(scene: Scene, arm: Arm, episode: EpisodeVariation, rng: np.random.Generator) -> Plan:
    handle = _HANDLE + rng.uniform(-0.006, 0.006)

    def nut() -> Pose:
        return scene.body("SquareNut_main")

    def at_handle() -> Pose:
        pose = nut()
        across = pose.rotation[:, 1]
        turned = nearest_rotation([down_facing(across), down_facing(-across)], arm.pose.rotation)
        return Pose(pose.position + pose.rotation @ [handle, 0.0, 0.0], turned)

    peg = scene.body("peg1").position + _PEG_TOP * UP
    approach, clearance = rng.uniform(0, episode.jitter, 2)

    def over_peg() -> Pose:
        return Pose(peg, nearest_rotation([rotation_z(yaw) for yaw in _YAWS], nut().rotation))

    entry = approach_height(nut, over_peg, 0.06 + clearance)

    def entering() -> Pose | None:
        now, end = nut(), over_peg()
        there = now.distance(end) < 0.008 and now.angle(end) < 0.08
        lost = arm.opening < _THINNEST
        return None if there or lost else hand_for(arm.pose, now, entry())

    slip = episode.slip("nut")
    for _ in range(_ATTEMPTS):
        yield from pick(arm, at_handle, thinnest=_THINNEST, beside=_BESIDE, height=0.07 + approach, slip=slip)
        yield from reach(arm, arm.pose.raised(0.2).moved(episode.offset(rng)), 0.04, 0.3)
        arrived = yield from follow(arm, entering, at_most=160)
        if arrived and arm.opening > _THINNEST:
            break
        slip = None
    else:
        raise PlanFailed("the nut does not come to the peg")
    around_peg = over_peg().raised(-_PEG_TOP)
    yield from reach(arm, lambda: hand_for(arm.pose, nut(), around_peg), 0.02, 0.15, at_most=40)
    yield from grip(arm, False, 6)
    yield from reach(arm, arm.pose.raised(0.1), 0.02, 0.3, at_most=40)
