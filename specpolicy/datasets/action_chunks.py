"""Cutting episodes into (observation history, action chunk) pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.datasets.demonstrations import Demonstration


@dataclass(frozen=True)
class ActionChunkDataset:
    """All training pairs of a set of episodes, in memory, in the data's own units.

    Attributes:
        observations: joined vectors. actions: chunks.
        frames: the moment of each observation step, an index into what is kept once for each moment of the data:
        images: of each camera, bytes. others: further vectors.
        executed: what was played, of the shape of ``actions``; None where that is the same.
    """

    observations: Float[Tensor, "n steps obs"]
    actions: Float[Tensor, "n time action"]
    frames: Int[Tensor, "n steps"]
    images: Mapping[str, Shaped[Tensor, "moments a b c"]] = field(default_factory=dict)
    others: Mapping[str, Float[Tensor, "moments dim"]] = field(default_factory=dict)
    executed: Float[Tensor, "n time action"] | None = None

    def __len__(self) -> int:
        return len(self.actions)

    def to(self, device: torch.device | str) -> ActionChunkDataset:
        """The same pairs on another device; images stay where they are, since they may be larger than it."""
        others = {key: values.to(device) for key, values in self.others.items()}
        return ActionChunkDataset(
            self.observations.to(device),
            self.actions.to(device),
            self.frames,
            self.images,
            others,
            None if self.executed is None else self.executed.to(device),
        )


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
    observations, actions, executed, frames, begin = [], [], [], [], 0
    differ = any(episode.executed is not None for episode in episodes)
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
        if differ:
            executed.append((episode.actions if episode.executed is None else episode.executed)[steps])
        observations.append(episode.observations[steps[:, :n_obs_steps]])
        frames.append(begin + steps[:, :n_obs_steps])
        begin += length
    return ActionChunkDataset(
        _joined(observations),
        _joined(actions),
        _joined(frames),
        {key: _joined([episode.images[key] for episode in episodes]) for key in episodes[0].images},
        {key: _joined([episode.others[key] for episode in episodes]) for key in episodes[0].others},
        _joined(executed) if differ else None,
    )


def _joined(parts: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
