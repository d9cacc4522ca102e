"""Cutting episodes into (observation history, action chunk) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.datasets.robomimic import Demonstration


@dataclass(frozen=True)
class ActionChunkDataset:
    """All training pairs of a set of episodes, in memory, in the data's own units."""

    observations: Float[Tensor, "n steps obs"]
    actions: Float[Tensor, "n time action"]

    def __len__(self) -> int:
        return len(self.actions)

    def to(self, device: torch.device | str) -> ActionChunkDataset:
        """The same pairs on another device."""
        return ActionChunkDataset(self.observations.to(device), self.actions.to(device))


def cut_action_chunks(
    episodes: Sequence[Demonstration], n_obs_steps: int, horizon: int, n_action_steps: int
) -> ActionChunkDataset:
    """One pair for each step of each episode.

    The chunk starts at the oldest observation step. At the borders of an episode the first and last entries are
    repeated, but only as far as the executed part of a chunk can reach (Diffusion Policy, appendix A.2). A chunk with
    an action that is not to be learned (``Demonstration.taught``) is left out; what follows a fault is kept.

    Returns:
        Observations ``(n, n_obs_steps, obs)`` and actions ``(n, horizon, action)``.
    """
    before, after = n_obs_steps - 1, n_action_steps - 1
    observations, actions = [], []
    for episode in episodes:
        length = len(episode.actions)
        starts = np.arange(-before, length - horizon + after + 1)
        if len(starts) == 0:  # an episode shorter than a chunk still teaches one pair
            starts = np.array([-before])
        steps = starts[:, None] + np.arange(horizon)
        steps = steps.clip(0, length - 1)
        if episode.taught is not None:
            steps = steps[episode.taught[steps[:, before:]].all(axis=1)]
        actions.append(episode.actions[steps])
        observations.append(episode.observations[steps[:, :n_obs_steps]])
    return ActionChunkDataset(torch.from_numpy(np.concatenate(observations)), torch.from_numpy(np.concatenate(actions)))
