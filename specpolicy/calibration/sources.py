"""Observations to record chains at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.policies import DiffusionPolicy
from specpolicy.policies.digest import file_digest

from .calibration import CalibrationError


@dataclass(frozen=True)
class Histories:
    """Observation histories that a policy has met or may meet.

    Attributes:
        observations: raw units, joined as the policy joins them, shape ``(n, observation_horizon, dim)``.
        group: which episode each is of, shape ``(n,)``; each its own where that is not known.
        origin: where they come from, as plain JSON types; the same origin has the same histories.
    """

    observations: Float[NDArray[Any], "n steps dim"]
    group: Int[NDArray[Any], " n"]
    origin: dict[str, Any]

    def conditions(self, policy: DiffusionPolicy, which: Int[Tensor, " m"]) -> Float[Tensor, "m c"]:
        """Some of them as the network's conditions."""
        return policy.condition(torch.from_numpy(self.observations[which.numpy()]).float().to(policy.device))

    def named(self, policy: DiffusionPolicy, which: Int[NDArray[Any], " m"]) -> dict[str, NDArray[Any]]:
        """Some of them under the names that :meth:`DiffusionPolicy.act` knows them by."""
        keys = policy.config.observations
        parts = np.split(self.observations[which], np.cumsum(list(keys.values()))[:-1], axis=-1)
        return dict(zip(keys, parts, strict=True))


def histories_of_demonstrations(policy: DiffusionPolicy, path: str | Path) -> Histories:
    """One history for each step of each episode of a robomimic file; before an episode its first step is repeated.

    Raises:
        DemonstrationError: the file is missing, damaged or lacks what the policy looks at.
        ImportError: h5py is missing; the message names the extra.
    """
    from specpolicy.training.demonstrations import read_demonstrations

    path = Path(path)
    episodes = read_demonstrations(path, policy.config.observations, validation_demos=0).train
    back = np.arange(1 - policy.config.observation_horizon, 1)
    histories = [
        episode.observations[(np.arange(len(episode.observations))[:, None] + back).clip(min=0)] for episode in episodes
    ]
    group = np.repeat(np.arange(len(histories)), [len(each) for each in histories])
    return Histories(np.concatenate(histories), group, _origin("demonstrations", path))


def histories_of_observations(policy: DiffusionPolicy, path: str | Path) -> Histories:
    """The histories that an evaluation left in ``observations.npz``.

    Raises:
        CalibrationError: the file is missing or no such archive.
        ObservationError: it lacks what the policy looks at.
    """
    path = Path(path)
    try:
        with np.load(path) as arrays:
            observations = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}); expected an observations.npz as `specpolicy evaluate` leaves it"
        ) from error
    joined = policy.observations.join(observations)
    return Histories(joined, np.arange(len(joined)), _origin("observations", path))


def _origin(kind: str, path: Path) -> dict[str, Any]:
    return {"kind": kind, "file": path.name, "sha256": file_digest(path)}
