"""The last observations of an episode, as a policy wants to see them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ObservationError(ValueError):
    """An observation does not have the keys, shapes or finite values that the policy was trained on."""


@dataclass(frozen=True)
class ObservationSpec:
    """Names and lengths of the observation's parts, in the order in which they are joined.

    Args:
        keys: length of each part; the order is the policy's.
        horizon: number of observation steps that the policy sees, the present one last.
    """

    keys: dict[str, int]
    horizon: int

    @property
    def dim(self) -> int:
        """Length of one joined observation step."""
        return sum(self.keys.values())

    def join(self, observation: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float32]:
        """Check ``observation`` and join its parts.

        Args:
            observation: arrays of shape ``(batch, horizon, dim_of_key)``; further keys are ignored.

        Returns:
            Array of shape ``(batch, horizon, dim)``.

        Raises:
            ObservationError: a key is missing, a shape is wrong, batch sizes differ, or a value is NaN or infinite.
        """
        missing = [key for key in self.keys if key not in observation]
        if missing:
            raise ObservationError(
                f"observation lacks {missing}; the policy needs {self.keys}, it was given {sorted(observation)}"
            )
        parts: list[NDArray[np.float32]] = []
        for key, dim in self.keys.items():
            part = np.asarray(observation[key])
            if part.ndim != 3 or part.shape[1:] != (self.horizon, dim):
                raise ObservationError(
                    f"observation[{key!r}] has shape {part.shape}; expected (batch, {self.horizon} steps, {dim})"
                )
            if not np.isfinite(part).all():
                raise ObservationError(
                    f"observation[{key!r}] contains NaN or infinity; check the sensor or the simulator"
                )
            parts.append(part.astype(np.float32))
        sizes = {key: part.shape[0] for key, part in zip(self.keys, parts, strict=True)}
        if len(set(sizes.values())) > 1:
            raise ObservationError(f"observation parts have different batch sizes: {sizes}")
        return np.concatenate(parts, axis=-1)


HistoryWindow = dict[str, NDArray[Any]]
"""``{name: (n_obs_steps, …)}``, the present step last."""


class ObservationHistory:
    """The last ``horizon`` observations; the first one fills it.

    Args:
        horizon: observation steps that the policy sees, at least 1.
        observation: what ``reset`` returned: a mapping of arrays, or one array, which is then named "observation".
    """

    def __init__(self, horizon: int, observation: Any) -> None:
        if horizon < 1:
            raise ValueError(f"observation horizon {horizon}; it must be at least 1")
        self._steps: deque[Mapping[str, NDArray[Any]]] = deque([_named(observation)] * horizon, maxlen=horizon)

    def add(self, observation: Any) -> None:
        """Take in the next observation."""
        self._steps.append(_named(observation))

    def window(self) -> HistoryWindow:
        """All of them, stacked."""
        return {name: np.stack([step[name] for step in self._steps]) for name in self._steps[-1]}

    @property
    def latest(self) -> Mapping[str, NDArray[Any]]:
        """The present observation."""
        return self._steps[-1]


def _named(observation: Any) -> Mapping[str, NDArray[Any]]:
    parts = observation if isinstance(observation, Mapping) else {"observation": observation}
    return {name: np.array(part) for name, part in parts.items()}  # copied: simulators reuse their buffers
