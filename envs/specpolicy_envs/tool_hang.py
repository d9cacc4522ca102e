"""Tool Hang: put a hooked frame into its stand, then hang a tool on the hook (Robomimic's ``ToolHang``)."""

from __future__ import annotations

from .robosuite_env import RobosuiteEnv
from .task import RobosuiteTask

TOOL_HANG = RobosuiteTask(
    name="ToolHang",
    observations={"object": 44, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2},
)
"""One Panda arm. ``object`` holds, for the stand's base, the frame's upper corner and the tool in turn, position (m)
and quaternion (x, y, z, w) in the world, then both in the hand's frame; after them two flags: whether the frame is
assembled, and whether the tool hangs on it. Success: both; the fingers have then let go of the tool.
"""


class ToolHangEnv(RobosuiteEnv):
    """Robomimic's Tool Hang; see :data:`TOOL_HANG` and :class:`RobosuiteEnv`."""

    task = TOOL_HANG
