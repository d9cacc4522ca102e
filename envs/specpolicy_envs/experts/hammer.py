"""Transport's hammer, and where and when two hands meet at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arm import Arm
from .expert import PlanFailed
from .poses import Vector
from .scene import Scene

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
class Meeting:
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
