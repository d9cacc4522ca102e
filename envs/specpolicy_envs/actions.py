"""Actions, checked before a simulator sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def checked_action(action: ArrayLike, low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float64]:
    """The action as float64, clipped into its box.

    Args:
        action: what a policy asks for, shape ``(dim,)``.
        low, high: the box's bounds, shape ``(dim,)``. Values outside are clipped, silently: policies trained on
            demonstrations overshoot the box all the time.

    Raises:
        ValueError: another shape, not numbers, or an entry that is NaN or infinite.
    """
    try:
        values = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an action must be an array of {low.size} numbers, not {action!r}") from error
    if values.shape != low.shape:
        raise ValueError(f"an action must have shape {low.shape}, not {values.shape}; step one environment at a time")
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values)).tolist()
        raise ValueError(
            f"the action is not finite at index {bad}: {values.tolist()}; look for NaN in the policy's output"
        )
    return np.clip(values, low, high)
