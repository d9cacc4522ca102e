"""What an expert is."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .arm import Arm
from .scene import Scene
from .variety import Episode

Plan = Generator[None, None, Any]
"""Sets the goals of one arm; runs on for one control step at each ``next``."""


class PlanFailed(Exception):
    """A plan sees that it cannot go on; the message says at what."""


class Expert(Protocol):
    """Plays one task from what the simulator knows."""

    name: str
    """The task, as in :data:`specpolicy_envs.experts.EXPERTS`."""

    horizon: int
    """Longest performance, control steps."""

    grasps: tuple[str, ...]
    """Names of the grasps at which a slip can be asked for."""

    def plan(self, scene: Scene, arms: Sequence[Arm], episode: Episode, rng: np.random.Generator) -> Mapping[int, Plan]:
        """One plan for each arm that moves, by the arm's index; they run side by side, lower indices first.

        Plans may raise :class:`PlanFailed` at any step. An arm whose plan has ended holds its last goal.
        """
        ...
