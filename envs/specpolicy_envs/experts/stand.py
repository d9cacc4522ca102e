"""Putting the frame upright into the hole of its stand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arm import Arm
from .expert import PlanFailed
from .motions import Motion, follow
from .poses import UP, Pose, Vector, hand_for
from .scene import Scene

_RIM, _BOTTOM = 0.96, 0.805  # heights of the hole's ends, m
_INSERTED = 0.822  # a tip below this height is in, m
_READY = 0.012  # the tip waits this far above the rim until it is in line
_IN_LINE = 0.003
_PUSH = 0.02  # how far ahead the goal is on the way down, m
_TILT = 0.03  # at twice this tilt, rad, nothing is pushed any more
_LEVER = 0.03  # metres that a turn of one radian counts for


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
        if height > _RIM - 0.005 and aside + _LEVER * tilt > _IN_LINE:
            wanted = _RIM + _READY + min(0.04, 4.0 * aside)
        else:  # a tilted rod wedges itself into the hole: push less, or pull
            wanted = max(_BOTTOM, height - _PUSH * float(np.clip(2.0 - tilt / _TILT, -0.5, 1.0)))
        return hand_for(arm.pose, now, Pose(hole + wanted * UP, rotation))

    if not (yield from follow(arm, goal, at_most=160)):
        raise PlanFailed("the frame does not go into its stand")
    return True
