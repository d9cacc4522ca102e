"""Observations of real episodes, kept beside the episodes to measure latency on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specpolicy.atomic import atomic_path

from .protocols import Observation

OBSERVATIONS = "observations.npz"


def write_observations(observations: Sequence[Observation], folder: Path) -> None:
    """Write observations, arrays of shape ``(1, observation_horizon, dim)``, at once or not at all."""
    stacked = {name: np.concatenate([each[name] for each in observations]) for name in observations[0]}
    with atomic_path(folder / OBSERVATIONS) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **stacked)


def read_observations(folder: Path) -> list[Observation]:
    """What :func:`write_observations` wrote, one by one; none if it wrote nothing."""
    path = folder / OBSERVATIONS
    if not path.exists():
        return []
    with np.load(path) as arrays:
        stacked = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(stacked.values())))
    return [{name: part[row : row + 1] for name, part in stacked.items()} for row in range(count)]


class ObservationKeeper:
    """Writes the observations of a run beside its episodes; a folder that has some from an earlier run keeps those."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._earlier = (folder / OBSERVATIONS).exists()

    def keep(self, observations: Sequence[Observation]) -> None:
        """Take note of what the run has kept so far."""
        if observations and not self._earlier:
            write_observations(observations, self._folder)
