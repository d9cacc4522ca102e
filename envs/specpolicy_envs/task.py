"""What tells one robosuite task from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

OSC_POSE: Mapping[str, Any] = MappingProxyType(
    {
        "type": "OSC_POSE",
        "input_max": 1,
        "input_min": -1,
        "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
        "kp": 150,
        "damping_ratio": 1,
        "impedance_mode": "fixed",
        "kp_limits": [0, 300],
        "damping_ratio_limits": [0, 10],
        "position_limits": None,
        "orientation_limits": None,
        "uncouple_pos_ori": True,
        "control_delta": True,
        "interpolation": None,
        "ramp_ratio": 0.2,
    }
)
"""The controller under which Robomimic's demonstrations were recorded (``env_args`` of its datasets).

Operational-space control of the hand: three displacements of at most 5 cm and three rotations of at most 0.5 rad
(axis-angle, world frame) a control step, stiffness 150, critically damped.
"""

ACTIONS_PER_ARM = 7
"""Six for :data:`OSC_POSE`, one for the gripper (positive closes, negative opens)."""


@dataclass(frozen=True)
class RobosuiteTask:
    """A task of robosuite 1.4.1, as :class:`specpolicy_envs.robosuite_env.RobosuiteEnv` plays it.

    Attributes:
        name: robosuite's name of the environment.
        observations: name → dimension of what a policy sees, in order. ``object`` is robosuite's ``object-state``.
        robots: one name for each arm.
        controller: how actions become torques, the same for each arm.
        control_frequency: control steps a second of simulated time, Hz.
        camera: the camera that ``render`` looks through unless told otherwise.
        hard_reset: whether robosuite rebuilds its model at each reset. It costs a few tenths of a second, and is
            needed only where an object's shape is drawn with the model and should change between episodes.
        options: further arguments of robosuite's constructor.
    """

    name: str
    observations: Mapping[str, int]
    robots: tuple[str, ...] = ("Panda",)
    controller: Mapping[str, Any] = field(default_factory=lambda: OSC_POSE)
    control_frequency: int = 20
    camera: str = "agentview"
    hard_reset: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def action_dim(self) -> int:
        """Length of an action, all arms together."""
        return ACTIONS_PER_ARM * len(self.robots)

    def robosuite_arguments(self) -> dict[str, Any]:
        """Arguments of ``robosuite.make``: no images, no horizon of its own, sparse reward, object poses observed."""
        return {
            "env_name": self.name,
            "robots": list(self.robots),
            "controller_configs": [dict(self.controller) for _ in self.robots],
            "control_freq": self.control_frequency,
            "hard_reset": self.hard_reset,
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_camera_obs": False,
            "use_object_obs": True,
            "ignore_done": True,
            "reward_shaping": False,
            **self.options,
        }
