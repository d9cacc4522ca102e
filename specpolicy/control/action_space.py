"""What the entries of an action mean to a robot that has to stand still, and which actions may be sent to it."""

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
    """Which entries of an action are deltas (or velocities), and which are absolute.

    A delta of zero is standstill. An absolute entry (a gripper command, a target position) is kept by sending it again.
    An arm under operational-space control with one gripper has ``delta_dims=(0, …, 5)`` and ``absolute_dims=(6,)``; a
    finger that is sent to a target position has ``delta_dims=()`` and ``absolute_dims=(0, 1)``.

    Attributes:
        delta_dims: indices that are zero while the robot holds.
        absolute_dims: indices that repeat the last command while it holds.
        initial: values of ``absolute_dims`` before anything has been sent, in their order, environment units.
        initial_from: name of the observation that has these values instead, of the same length.
        velocity_dims: those of ``delta_dims`` that are velocities, units a second, and keep their value when an action
            is divided into commands; the others are displacements, which are divided with it.

    Raises:
        ValueError: the indices are not 0 … n − 1, each once; the initial values are missing or not finite; or a
            velocity is not among the deltas.
    """

    delta_dims: Sequence[int]
    absolute_dims: Sequence[int] = ()
    initial: Sequence[float] = ()
    initial_from: str | None = None
    velocity_dims: Sequence[int] = ()

    def __post_init__(self) -> None:
        indices = sorted([*self.delta_dims, *self.absolute_dims])
        if not indices or indices != list(range(len(indices))):
            raise ValueError(
                f"delta_dims={list(self.delta_dims)} and absolute_dims={list(self.absolute_dims)} must name every "
                "entry of an action once, from 0 on: those that stand still at zero, and those that are repeated"
            )
        if self.initial_from is None and len(self.initial) != len(self.absolute_dims):
            raise ValueError(
                f"initial has {len(self.initial)} values for {len(self.absolute_dims)} absolute entries; give the "
                "values before the first action, or name an observation that has them with initial_from"
            )
        if not all(isinstance(value, int | float | np.number) and np.isfinite(value) for value in self.initial):
            raise ValueError(f"initial={list(self.initial)}; expected finite numbers, one for each absolute entry")
        if not set(self.velocity_dims) <= set(self.delta_dims):
            raise ValueError(
                f"velocity_dims={list(self.velocity_dims)} must be among delta_dims={list(self.delta_dims)}: a "
                "velocity of zero is standstill"
            )

    @property
    def dim(self) -> int:
        """Entries of an action."""
        return len(self.delta_dims) + len(self.absolute_dims)

    def initial_action(self, observation: Mapping[str, Any]) -> Action:
        """Compute the action of a robot that has not been sent anything yet.

        Args:
            observation: the first one, ``{name: (…)}``.

        Returns:
            Shape ``(dim,)``.

        Raises:
            ValueError: ``initial_from`` is not observed, has another length, or is not finite.
        """
        action = np.zeros(self.dim)
        if not self.absolute_dims:
            return action
        if self.initial_from is None:
            action[list(self.absolute_dims)] = self.initial
            return action
        if self.initial_from not in observation:
            raise ValueError(
                f"initial_from={self.initial_from!r}, but the environment observes {', '.join(observation)}"
            )
        value = np.asarray(observation[self.initial_from])
        if value.shape != (len(self.absolute_dims),) or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise ValueError(
                f"initial_from={self.initial_from!r}: the first observation there is {value.tolist()!r:.80}; expected "
                f"{len(self.absolute_dims)} finite numbers"
            )
        action[list(self.absolute_dims)] = value
        return action

    def slow_down(self, action: Action, remaining: float) -> Action:
        """Scale the deltas of an action and keep its absolute entries.

        Args:
            action: shape ``(dim,)``.
            remaining: share of the deltas that is left, 0 (hold) to 1 (unchanged).

        Returns:
            Shape ``(dim,)``.
        """
        slow = action.copy()
        slow[list(self.delta_dims)] *= remaining
        return slow

    def over_tick(self, commands: Action) -> Action:
        """Sum commands up to the action that they were together.

        Args:
            commands: shape ``(n, dim)``, in the order in which they were sent.

        Returns:
            Shape ``(dim,)``: the last of absolute entries, the sum of deltas, the mean of velocities.
        """
        action = commands.sum(0)
        action[list(self.absolute_dims)] = commands[-1, list(self.absolute_dims)]
        action[list(self.velocity_dims)] /= len(commands)
        return action


@dataclass(frozen=True)
class ActionLimits:
    """The box that actions must stay in.

    Attributes:
        low, high: shape ``(dim,)``, in the environment's units.
        tolerance: how far outside an action may lie and still count as inside; it is then moved to the border.
        dtype: in which actions are sent.
    """

    low: Action
    high: Action
    tolerance: float = 1e-6
    dtype: np.dtype[Any] = np.dtype(np.float64)  # noqa: RUF009 - immutable

    @classmethod
    def from_space(cls, space: gymnasium.Space[Any], spec: ActionSpec, tolerance: float = 1e-6) -> ActionLimits:
        """Read the limits of an action space, and check that a standstill lies within them.

        Args:
            space: the environment's.
            spec: of its actions.
            tolerance: see the class.

        Returns:
            The limits.

        Raises:
            ValueError: the space is no flat box of the described dimension, or the action of a robot at rest lies
                outside.
        """
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != (spec.dim,):
            raise ValueError(
                f"the environment's action space is {space}; the description of its actions "
                f"(delta_dims={list(spec.delta_dims)}, absolute_dims={list(spec.absolute_dims)}) is one of a Box of "
                f"shape ({spec.dim},)"
            )
        limits = cls(space.low.astype(np.float64), space.high.astype(np.float64), tolerance, np.dtype(space.dtype))
        rest = np.zeros(spec.dim)
        if spec.initial_from is None:
            rest = spec.initial_action({})
        checked = [*spec.delta_dims, *(() if spec.initial_from is not None else spec.absolute_dims)]
        outside = [index for index in checked if not limits.low[index] <= rest[index] <= limits.high[index]]
        if outside:
            index = min(outside)
            what = "a delta of 0 (standstill)" if index in spec.delta_dims else f"initial value {rest[index]:g}"
            raise ValueError(
                f"entry {index} of an action: {what} lies outside the environment's limits "
                f"[{limits.low[index]:g}, {limits.high[index]:g}], so that nothing safe could be sent; check the "
                "description of the actions"
            )
        return limits

    @classmethod
    def unlimited(cls, dim: int) -> ActionLimits:
        """Make limits that contain every action of ``dim`` entries."""
        return cls(np.full(dim, -np.inf), np.full(dim, np.inf))

    def contain(self, action: Action) -> bool:
        """Say whether a finite action, shape ``(dim,)``, lies inside."""
        return bool(np.all(action >= self.low - self.tolerance) and np.all(action <= self.high + self.tolerance))

    def clip(self, action: Action) -> Action:
        """Return the nearest action inside, shape ``(dim,)``."""
        return np.clip(action, self.low, self.high)

    def representable(self, actions: Action) -> bool:
        """Say whether actions of any shape are finite, also in the type in which they are sent."""
        if not np.isfinite(actions).all():
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(actions.astype(self.dtype)).all())
