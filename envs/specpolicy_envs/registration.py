"""The ids under which gymnasium knows the environments of this package.

Another environment is a module beside ``square.py`` and a line in :data:`ENVIRONMENTS`.
"""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

ENVIRONMENTS: dict[str, tuple[str, int]] = {
    "specpolicy/PushT-v0": ("specpolicy_envs.pusht:PushTEnv", 300),
    "specpolicy/Square-v0": ("specpolicy_envs.square:SquareEnv", 400),
    "specpolicy/ToolHang-v0": ("specpolicy_envs.tool_hang:ToolHangEnv", 700),
    "specpolicy/Transport-v0": ("specpolicy_envs.transport:TransportEnv", 700),
}
"""id → (entry point, longest episode in control steps). Entry points are strings, so that no simulator is imported."""


def register_environments() -> None:
    """Register every environment that gymnasium does not know yet; calling it again does nothing."""
    for name, (entry_point, max_episode_steps) in ENVIRONMENTS.items():
        if name not in registry:
            register(id=name, entry_point=entry_point, max_episode_steps=max_episode_steps)
