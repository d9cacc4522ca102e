"""What the numbers of an action mean to a robot that has to stand still, and which numbers may be sent to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Action = NDArray[np.float64]


@dataclass(frozen=True)
class ActionSpec:
    """Which entries of an action are rates, and which are states.

    A rate (a pose difference, a velocity) of zero is standstill. A state (a gripper's command, a target position) is
    kept by sending it again. An arm under operational-space control with one gripper has ``zeroed=(0, …, 5)`` and
    ``kept=(6,)``; a finger that is told where to go has ``zeroed=()`` and ``kept=(0, 1)``.

    Attributes:
        zeroed: indices that are zero while the robot holds.
        kept: indices that repeat the last command while it holds.
        initial: values of ``kept`` before anything has been sent, in their order.
        initial_from: name of the observation that holds these values instead, of the same length.

    Raises:
        ValueError: the indices are not 0 … n − 1, each once; or the initial values of the kept ones are missing.
    """

    zeroed: Sequence[int]
    kept: Sequence[int] = ()
    initial: Sequence[float] = ()
    initial_from: str | None = None

    def __post_init__(self) -> None:
        indices = sorted([*self.zeroed, *self.kept])
        if not indices or indices != list(range(len(indices))):
            raise ValueError(
                f"zeroed={list(self.zeroed)} and kept={list(self.kept)} must name every entry of an action once, "
                "from 0 on: those that stand still at zero, and those that are held by repeating them"
            )
        if self.initial_from is None and len(self.initial) != len(self.kept):
            raise ValueError(
                f"initial has {len(self.initial)} values for {len(self.kept)} kept entries: say what they are before "
                "the first action, or name an observation that tells it with initial_from"
            )

    @property
    def dim(self) -> int:
        """Entries of an action."""
        return len(self.zeroed) + len(self.kept)

    def first(self, observation: Mapping[str, Any]) -> Action:
        """The action of a robot that has not been told anything yet, shape ``(dim,)``."""
        action = np.zeros(self.dim)
        if self.kept:
            known = self.initial if self.initial_from is None else _entry(observation, self.initial_from)
            action[list(self.kept)] = np.asarray(known, dtype=np.float64)
        return action

    def slowed(self, action: Action, remaining: float) -> Action:
        """``action`` with the share ``remaining`` of its rates, its states as they are; 0 holds, 1 changes nothing."""
        slow = action.copy()
        slow[list(self.zeroed)] *= remaining
        return slow


@dataclass(frozen=True)
class Limits:
    """The box that actions must stay in.

    Attributes:
        low, high: shape ``(dim,)``, in the environment's units.
        tolerance: how far outside an action may lie and still count as inside; it is then moved to the border.
    """

    low: Action
    high: Action
    tolerance: float = 1e-6

    @staticmethod
    def of(space: gymnasium.Space[Any], meaning: ActionSpec, tolerance: float = 1e-6) -> Limits:
        """The limits of an action space. Raises ``ValueError`` if it is no flat box of the described dimension."""
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != (meaning.dim,):
            raise ValueError(
                f"the environment's action space is {space}; the description of its actions "
                f"(zeroed={list(meaning.zeroed)}, kept={list(meaning.kept)}) is one of a Box of shape ({meaning.dim},)"
            )
        return Limits(space.low.astype(np.float64), space.high.astype(np.float64), tolerance)

    def hold(self, action: Action) -> bool:
        """Whether a finite action is inside."""
        return bool(np.all(action >= self.low - self.tolerance) and np.all(action <= self.high + self.tolerance))

    def clip(self, action: Action) -> Action:
        """The nearest action inside."""
        return np.clip(action, self.low, self.high)


def _entry(observation: Mapping[str, Any], name: str) -> Any:
    if name not in observation:
        raise ValueError(f"initial_from={name!r}, but the environment observes {', '.join(observation)}")
    return observation[name]
