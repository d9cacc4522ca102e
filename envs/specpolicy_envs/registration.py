"""The ids under which gymnasium knows the environments of this package.

Another environment is a module beside ``square.py`` and a line in :data:`ENVIRONMENTS`.
"""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

ENVIRONMENTS: dict[str, tuple[str, int]] = {
    "specpolicy/Square-v0": ("specpolicy_envs.square:SquareEnv", 400),
}
"""id → (entry point, longest episode in control steps). Entry points are strings, so that no simulator is imported."""


def register_environments() -> None:
    """Register every environment that gymnasium does not know yet; calling it again does nothing."""
    for name, (entry_point, max_episode_steps) in ENVIRONMENTS.items():
        if name not in registry:
            register(id=name, entry_point=entry_point, max_episode_steps=max_episode_steps)
