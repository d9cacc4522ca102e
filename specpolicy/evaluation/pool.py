"""The environments of an evaluation, kept from one sampler to the next: starting a simulator is slow."""

from __future__ import annotations

from types import TracebackType

from .player import EnvFactory
from .slots import LocalSlot, PlayerSettings, ProcessSlot, Slot


class EnvPool:
    """``num_envs`` slots. Use it as a context manager, so that no worker outlives it.

    Args:
        make_env: makes one environment; picklable (by cloudpickle) unless it stays in this process.
        observation_horizon: observation steps the policy sees.
        num_envs: episodes run side by side.
        max_steps: end episodes after so many steps even if the environment would go on.
        timeout_s: a worker that takes longer over one action chunk, or over starting the simulator, is killed and its
            episode counted as crashed.
        in_process: run them in this process, one after another; by default only a single one. For cheap environments
            and for debugging: no worker can die alone, and ``timeout_s`` is without effect.

    Example:
        >>> with EnvPool(MakeEnv("specpolicy_envs:specpolicy/Square-v0"), 2, num_envs=8) as pool:  # doctest: +SKIP
        ...     records = list(rollout(policy, sampler, pool, episode_keys("ddpm", range(100)), task="square"))
    """

    def __init__(
        self,
        make_env: EnvFactory,
        observation_horizon: int,
        num_envs: int = 1,
        max_steps: int | None = None,
        timeout_s: float = 600.0,
        in_process: bool | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        settings = PlayerSettings(make_env, observation_horizon, max_steps)
        local = num_envs == 1 if in_process is None else in_process
        self.slots: list[Slot] = [
            LocalSlot(settings) if local else ProcessSlot(settings, timeout_s) for _ in range(num_envs)
        ]

    def close(self) -> None:
        """Close every environment and end every worker."""
        for slot in self.slots:
            slot.close()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
