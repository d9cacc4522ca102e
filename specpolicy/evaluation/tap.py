"""A policy that remembers what it was asked: observations from real episodes, to measure latency on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .protocols import ActionChunk, Observation, Policy, PolicyConfig


class ObservationTap:
    """Wraps a policy and keeps observations that pass, at even distances: late phases of episodes, too.

    Args:
        policy: whom to ask.
        limit: keep no more than this many; all of them if None. Between half the limit and the limit are kept of more.

    Attributes:
        observations: arrays of shape ``(1, observation_horizon, dim)``, in the order of asking.
    """

    def __init__(self, policy: Policy, limit: int | None = None) -> None:
        self._policy, self._limit = policy, limit
        self._seen, self._distance = 0, 1
        self.observations: list[dict[str, NDArray[Any]]] = []

    @property
    def config(self) -> PolicyConfig:
        """The wrapped policy's."""
        return self._policy.config

    def act(
        self, observation: Observation, sampler: Any, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> ActionChunk:
        """Keep the observation, then ask the wrapped policy."""
        batch = len(next(iter(observation.values())))
        for row in range(batch):
            if self._seen % self._distance == 0:
                self.observations.append({name: np.array(part[row : row + 1]) for name, part in observation.items()})
            self._seen += 1
            if self._limit is not None and len(self.observations) > self._limit:
                self.observations = self.observations[::2]
                self._distance *= 2
        return self._policy.act(observation, sampler, generator)
