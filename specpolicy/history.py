"""The last observations of an episode, as a policy wants to see them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Window = dict[str, NDArray[Any]]
"""``{name: (observation_horizon, …)}``, the present step last."""


class History:
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

    def window(self) -> Window:
        """All of them, stacked."""
        return {name: np.stack([step[name] for step in self._steps]) for name in self._steps[-1]}

    @property
    def latest(self) -> Mapping[str, NDArray[Any]]:
        """The present observation."""
        return self._steps[-1]


def _named(observation: Any) -> Mapping[str, NDArray[Any]]:
    parts = observation if isinstance(observation, Mapping) else {"observation": observation}
    return {name: np.array(part) for name, part in parts.items()}  # copied: simulators reuse their buffers
