"""Transport: hand a hammer from one table to the other (Robomimic's ``TwoArmTransport``)."""

from __future__ import annotations

from types import MappingProxyType

from .robosuite_env import RobosuiteEnv
from .task import RobosuiteTask

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
