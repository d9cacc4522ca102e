"""Positions and orientations in the world's frame, and the few relations between them that a plan needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

UP: Vector = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Pose:
    """Where something is and how it is turned.

    Attributes:
        position: metres, world frame, shape ``(3,)``.
        rotation: its axes as columns, world frame, shape ``(3, 3)``.
    """

    position: Vector
    rotation: Matrix

    def moved(self, offset: ArrayLike) -> Pose:
        """The same orientation, ``offset`` (m, world frame, shape ``(3,)``) further on."""
        return replace(self, position=self.position + np.asarray(offset, dtype=np.float64))

    def raised(self, height: float) -> Pose:
        """The same orientation, ``height`` (m) further up."""
        return replace(self, position=self.position + height * UP)

    def turned(self, rotation: Matrix) -> Pose:
        """The same position with another orientation."""
        return replace(self, rotation=rotation)

    def distance(self, other: Pose) -> float:
        """Metres between the two positions."""
        return float(np.linalg.norm(other.position - self.position))

    def angle(self, other: Pose) -> float:
        """Radians between the two orientations."""
        return float(np.linalg.norm(rotation_vector(self.rotation, other.rotation)))


def down_facing(closing_axis: ArrayLike) -> Matrix:
    """A hand that points straight down and closes its fingers along the horizontal part of ``closing_axis`` (3,)."""
    x = np.asarray(closing_axis, dtype=np.float64) * [1, 1, 0]
    x = x / np.linalg.norm(x)
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def rotation_about(axis: ArrayLike, angle: float) -> Matrix:
    """Turns by ``angle`` (rad) about the unit vector ``axis`` (3,)."""
    matrix: Matrix = Rotation.from_rotvec(angle * np.asarray(axis, dtype=np.float64)).as_matrix()
    return matrix


def rotation_z(angle: float) -> Matrix:
    """Turns by ``angle`` (rad) about the vertical."""
    return rotation_about([0, 0, 1], angle)


def rotation_vector(start: Matrix, end: Matrix) -> Vector:
    """Axis times angle (rad, world frame, shape ``(3,)``) of the turn that leads from ``start`` to ``end``."""
    vector: Vector = Rotation.from_matrix(end @ start.T).as_rotvec()
    return vector


def nearest_rotation(candidates: Iterable[Matrix], reference: Matrix) -> Matrix:
    """The candidate that is the smallest turn away from ``reference``."""
    return min(candidates, key=lambda candidate: float(np.linalg.norm(rotation_vector(reference, candidate))))


def hand_for(hand: Pose, held: Pose, target: Pose) -> Pose:
    """Where the hand must go so that what it holds, now at ``held``, comes to ``target``; the grasp being rigid.

    ``held`` may be any point of the held body with the body's orientation: that point is brought to the target.
    """
    turn = target.rotation @ held.rotation.T
    return Pose(target.position + turn @ (hand.position - held.position), turn @ hand.rotation)
