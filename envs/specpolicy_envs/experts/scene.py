"""The simulated scene as an expert reads it: true poses by name, live."""

from __future__ import annotations

from typing import Any

import numpy as np

from .poses import Pose, Vector


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
