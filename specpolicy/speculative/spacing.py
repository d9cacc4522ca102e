"""Which timesteps a short chain stops at."""

from __future__ import annotations

POWER = 1.75
"""Between even spacing (1), which steps over the end of the chain, and quadratic (2; Song et al. 2021, appendix D),
whose long first steps are hard to draft."""


def dense_timesteps(num_train_timesteps: int, num_inference_steps: int, power: float = POWER) -> list[int]:
    """Falling timesteps from the noisiest to 0, closer to each other where the sample takes shape.

    ``t_i = (T − 1) (1 − i / (K − 1))^power``, rounded, and moved up where two would be the same.

    Args:
        num_train_timesteps: T. num_inference_steps: K, from 2 to T. power: 1 spaces evenly; at least that.

    Raises:
        ValueError: K or the power is out of range.
    """
    last, steps = num_train_timesteps - 1, num_inference_steps
    if not 2 <= steps <= num_train_timesteps or not 1.0 <= power < float("inf"):
        raise ValueError(
            f"num_inference_steps={steps}, power={power:g}: expected 2 to {num_train_timesteps} steps and a power of 1 "
            "or more"
        )
    timesteps = [round(last * (1 - i / (steps - 1)) ** power) for i in range(steps)]
    for i in reversed(range(steps - 1)):
        timesteps[i] = max(timesteps[i], timesteps[i + 1] + 1)
    return timesteps
