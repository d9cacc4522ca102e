"""The simulated scene as an expert reads it: true poses by name, live."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

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


class Scene:
    """Poses of everything that has a name in a robosuite environment, as they are at the moment of asking.

    Args:
        robosuite_env: robosuite's own environment (:attr:`specpolicy_envs.robosuite_env.RobosuiteEnv.robosuite`).
    """

    def __init__(self, robosuite_env: Any) -> None:
        self.robosuite = robosuite_env

    @property
    def arms(self) -> int:
        """Number of arms."""
        return len(self.robosuite.robots)

    def body(self, name: str) -> Pose:
        """Pose of a body's frame. Raises ValueError if there is none of that name."""
        index, data = self._sim.model.body_name2id(name), self._sim.data
        return _pose(data.body_xpos[index], data.body_xmat[index])

    def geom(self, name: str) -> Pose:
        """Pose of a geom's frame. Raises ValueError if there is none of that name."""
        index, data = self._sim.model.geom_name2id(name), self._sim.data
        return _pose(data.geom_xpos[index], data.geom_xmat[index])

    def site(self, name: str) -> Pose:
        """Pose of a site's frame. Raises ValueError if there is none of that name."""
        index, data = self._sim.model.site_name2id(name), self._sim.data
        return _pose(data.site_xpos[index], data.site_xmat[index])

    def hand(self, arm: int) -> Pose:
        """Pose of an arm's grip site: between the fingertips, z ahead, fingers closing along x."""
        index, data = self.robosuite.robots[arm].eef_site_id, self._sim.data
        return _pose(data.site_xpos[index], data.site_xmat[index])

    def fingers(self, arm: int) -> Vector:
        """Positions of an arm's finger joints, m, shape ``(2,)``; about (0.04, -0.04) when open, (0, 0) when shut."""
        positions: Vector = self._sim.data.qpos[self.robosuite.robots[arm]._ref_gripper_joint_pos_indexes].copy()
        return positions

    @property
    def _sim(self) -> Any:
        return self.robosuite.sim  # a hard reset replaces it


def _pose(position: Any, rotation: Any) -> Pose:
    return Pose(np.array(position, dtype=np.float64), np.array(rotation, dtype=np.float64).reshape(3, 3))
