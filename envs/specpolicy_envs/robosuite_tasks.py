"""The ids under which gymnasium knows the environments of this package.

Another environment is a module beside ``square.py`` and a line in :data:`ENVIRONMENTS`.
"""

from __future__ import annotations

from types import MappingProxyType

from gymnasium.envs.registration import register, registry

from specpolicy_envs.robosuite_env import RobosuiteEnv, RobosuiteTask

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


TRANSPORT = RobosuiteTask(
    name="TwoArmTransport",
    observations={
        "object": 41,
        "robot0_eef_pos": 3,
        "robot0_eef_quat": 4,
        "robot0_gripper_qpos": 2,
        "robot1_eef_pos": 3,
        "robot1_eef_quat": 4,
        "robot1_gripper_qpos": 2,
    },
    robots=("Panda", "Panda"),
    hard_reset=True,
    options=MappingProxyType({"env_configuration": "single-arm-opposed"}),
)
"""Two Panda arms that face each other, each at its table. ``object`` holds position (m) and quaternion (x, y, z, w) of
the hammer, the piece of trash and the lid's knob, in the world; the positions of the target bin and the trash bin; the
ways from the left hand to hammer and knob, then from the right hand to hammer and trash; and two flags, whether the
hammer touches the target bin's bottom, and the trash its own bin's. Success: both do.

robosuite draws the size of the hammer's head (3 to 3.6 cm) with the model, and each reset draws it anew, as in
Robomimic's demonstrations: the seed names the hammer too, and a reset takes a few tenths of a second longer. A recorded
state does not hold sizes; ``reset(seed=..., options={"state": ...})`` with the seed of the episode that it was recorded
in brings back everything. With another seed the state is played with that seed's hammer.
"""


class TransportEnv(RobosuiteEnv):
    """Robomimic's Transport; see :data:`TRANSPORT` and :class:`RobosuiteEnv`."""

    task = TRANSPORT


ENVIRONMENTS: dict[str, tuple[str, int]] = {
    "specpolicy/PushT-v0": ("specpolicy_envs.pusht:PushTEnv", 300),
    "specpolicy/PushTImage-v0": ("specpolicy_envs.pusht:PushTImageEnv", 300),
    "specpolicy/Square-v0": ("specpolicy_envs.robosuite_tasks:SquareEnv", 400),
    "specpolicy/ToolHang-v0": ("specpolicy_envs.robosuite_tasks:ToolHangEnv", 700),
    "specpolicy/Transport-v0": ("specpolicy_envs.robosuite_tasks:TransportEnv", 700),
}
"""id → (entry point, longest episode in control steps). Entry points are strings, so that no simulator is imported."""


def register_environments() -> None:
    """Register every environment that gymnasium does not know yet; calling it again does nothing."""
    for name, (entry_point, max_episode_steps) in ENVIRONMENTS.items():
        if name not in registry:
            register(id=name, entry_point=entry_point, max_episode_steps=max_episode_steps)
