"""Square: grasp the nut by its handle, lower it over the square peg, let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .arm import Arm
from .expert import Plan, PlanFailed
from .grasping import funnel, pick
from .motions import follow, grip, reach
from .poses import UP, Pose, down_facing, hand_for, nearest_rotation, rotation_z
from .scene import Scene
from .variety import Episode

_HANDLE = 0.057  # from the nut's middle to where its handle is grasped, m, along the nut's x axis
_THINNEST = 0.02
_ABOVE_THE_HANDLE = (0.0, 0.0, -0.045)
_PEG_TOP = 0.1  # above the peg's frame, m
_YAWS = (np.pi / 2, -np.pi / 2, np.pi)  # a handle that points to +x is out of the hand's reach


class SquareExpert:
    """One grasp, one placement; the nut's sides lie along the peg's, whichever of three quarter turns is nearest."""

    name = "square"
    horizon = 400
    grasps = ("nut",)

    def plan(self, scene: Scene, arms: Sequence[Arm], episode: Episode, rng: np.random.Generator) -> Mapping[int, Plan]:
        """One plan, for the only arm."""
        return {0: _put_nut_over_peg(scene, arms[0], episode, rng)}


def _put_nut_over_peg(scene: Scene, arm: Arm, episode: Episode, rng: np.random.Generator) -> Plan:
    handle = _HANDLE + rng.uniform(-0.006, 0.006)

    def nut() -> Pose:
        return scene.body("SquareNut_main")

    def at_handle() -> Pose:
        pose = nut()
        across = pose.rotation[:, 1]
        turned = nearest_rotation([down_facing(across), down_facing(-across)], arm.pose.rotation)
        return Pose(pose.position + pose.rotation @ [handle, 0.0, 0.0], turned)

    yield from pick(
        arm,
        at_handle,
        thinnest=_THINNEST,
        beside=_ABOVE_THE_HANDLE,
        height=0.07 + rng.uniform(0, episode.jitter),
        slip=episode.slip("nut"),
    )
    yield from reach(arm, arm.pose.raised(0.2).moved(episode.offset(rng)), 0.04, 0.3)

    peg = scene.body("peg1").position + _PEG_TOP * UP
    over_peg = Pose(peg, nearest_rotation([rotation_z(yaw) for yaw in _YAWS], nut().rotation))

    def nut_to(target: Pose) -> Pose:
        return hand_for(arm.pose, nut(), target)

    entry = funnel(nut, lambda: over_peg, 0.06 + rng.uniform(0, episode.jitter))

    def entering() -> Pose | None:
        now = nut()
        return None if now.distance(over_peg) < 0.008 and now.angle(over_peg) < 0.08 else nut_to(entry())

    if not (yield from follow(arm, entering, at_most=160)):
        raise PlanFailed("the nut does not come to rest over the peg")
    yield from reach(arm, lambda: nut_to(over_peg.raised(-_PEG_TOP)), 0.02, 0.15, at_most=40)
    yield from grip(arm, False, 6)
    yield from reach(arm, arm.pose.raised(0.1), 0.02, 0.3, at_most=40)
