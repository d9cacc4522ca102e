"""An arm that is drawn to a goal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .poses import Pose, Vector, rotation_vector
from .scene import Scene

_METRES, _RADIANS = 0.05, 0.5  # what an action of 1 asks of the controller
_FAR_METRES, _FAR_RADIANS = 0.06, 0.5  # from here on disturbances have their full size
_LEAST_NOISE = 0.3
_PERSISTENCE = 0.7  # of a disturbance from step to step: one that changes its mind at each step moves nothing


class Arm:
    """One arm: its hand's pose, the goal of that hand, and the action that leads there.

    Attributes:
        goal: pose that the hand is drawn to; plans write it.
        closed: whether the gripper is told to close; plans write it.
        gain: how far the action reaches beyond the error; 3 is brisk and overshoots a little; plans write it.
        speed: largest component of an action, as a fraction of the episode's ``pace``, in (0, 1]; plans write it.
        noise: disturbances as a fraction of the episode's ``sigma``; plans lower it where precision counts.
        errs: whether a plan does something wrong on purpose at present, which nobody should learn; plans write it.

    Args:
        scene: where the arm is.
        index: which of its arms.
        pace: largest component of an action, in (0, 1].
        sigma: standard deviation of a disturbance far from the goal, in action units.
    """

    def __init__(self, scene: Scene, index: int, pace: float = 1.0, sigma: float = 0.0) -> None:
        self.index = index
        self.closed = False
        self.gain = 3.0
        self.speed = 1.0
        self.noise = 1.0
        self.errs = False
        self._scene = scene
        self._pace = pace
        self._sigma = sigma
        self._push = np.zeros(6)
        self.goal = self.pose

    @property
    def pose(self) -> Pose:
        """The hand as it is now."""
        return self._scene.hand(self.index)

    @property
    def opening(self) -> float:
        """Metres between the fingers, 0 to 0.08."""
        left, right = self._scene.fingers(self.index)
        return float(left - right)

    def error(self) -> tuple[Vector, Vector]:
        """What is missing to the goal: metres, shape ``(3,)``, and axis times angle in rad, shape ``(3,)``."""
        pose = self.pose
        return self.goal.position - pose.position, rotation_vector(pose.rotation, self.goal.rotation)

    def within(self, tolerance: float, rotation_tolerance: float) -> bool:
        """Whether the hand is closer to its goal than ``tolerance`` (m) and ``rotation_tolerance`` (rad)."""
        shift, turn = self.error()
        return bool(np.linalg.norm(shift) < tolerance and np.linalg.norm(turn) < rotation_tolerance)

    def intended(self) -> NDArray[np.float64]:
        """The action towards the goal, shape ``(7,)``, in [-1, 1]: proportional, its direction kept when limited."""
        shift, turn = self.error()
        limit = self._pace * self.speed
        gripper = 1.0 if self.closed else -1.0
        return np.concatenate(
            [_limited(self.gain * shift / _METRES, limit), _limited(self.gain * turn / _RADIANS, limit), [gripper]]
        )

    def disturbance(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Noise on the six motions of an action, shape ``(6,)``; it shrinks near the goal, where precision counts."""
        shift, turn = self.error()
        far = max(np.linalg.norm(shift) / _FAR_METRES, np.linalg.norm(turn) / _FAR_RADIANS)
        scale = self._sigma * self.noise * float(np.clip(far, _LEAST_NOISE, 1.0))
        self._push = _PERSISTENCE * self._push + np.sqrt(1 - _PERSISTENCE**2) * rng.normal(0.0, 1.0, 6)
        return scale * self._push


def _limited(values: Vector, limit: float) -> Vector:
    return values * min(1.0, limit / max(float(np.abs(values).max()), 1e-9))
