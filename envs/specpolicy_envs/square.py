"""Square: put the square nut over the square peg (Robomimic's ``NutAssemblySquare``)."""

from __future__ import annotations

from .robosuite_env import RobosuiteEnv
from .task import RobosuiteTask

SQUARE = RobosuiteTask(
    name="NutAssemblySquare",
    observations={"object": 14, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2},
)
"""One Panda arm. ``object`` is the nut's position (m) and quaternion (x, y, z, w) in the world, then both in the hand's
frame. Success: the nut lies around the peg, below the peg's top, and the gripper has let go of it.
"""


class SquareEnv(RobosuiteEnv):
    """Robomimic's Square; see :data:`SQUARE` and :class:`RobosuiteEnv`."""

    task = SQUARE
