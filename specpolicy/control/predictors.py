"""What will be observed in a few ticks: a guess to pre-draft under.

A pre-draft under a wrong guess costs passes, never exactness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from specpolicy.history import Window


class Predictor(Protocol):
    """Guesses the observation window ``ticks`` from now."""

    def __call__(self, window: Window, ticks: int) -> Window:
        """A window of the same shapes and dtypes."""
        ...


@dataclass(frozen=True)
class LastObservation:
    """Nothing will have changed."""

    def __call__(self, window: Window, ticks: int) -> Window:
        """The window as it is."""
        return window


@dataclass(frozen=True)
class LinearObservation:
    """Everything goes on as over the last two observations.

    Attributes:
        damping: share of the change that is believed in, 0 to 1.
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1:
            raise ValueError(f"damping={self.damping}; expected 0 (nothing changes) to 1 (all goes on)")

    def __call__(self, window: Window, ticks: int) -> Window:
        """Each step of the window moved on by ``ticks`` times its last change; with one step, the window as it is."""
        return {name: self._extrapolate(steps, ticks) for name, steps in window.items()}

    def _extrapolate(self, steps: np.ndarray, ticks: int) -> np.ndarray:
        if len(steps) < 2 or not np.issubdtype(steps.dtype, np.floating):
            return steps
        moved: np.ndarray = steps + self.damping * ticks * (steps[-1] - steps[-2])
        return moved.astype(steps.dtype)
