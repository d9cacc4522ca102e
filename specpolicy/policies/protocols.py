"""What episodes, control loops, servers and measurements need of a policy and a sampler: no more than this.

:class:`specpolicy.DiffusionPolicy` and every sampler of this library fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Observation = Mapping[str, NDArray[Any]]


@runtime_checkable
class ChunkSampler(Protocol):
    """A sampler that a policy accepts, and that says whether its samples follow the policy's distribution."""

    @property
    def exact(self) -> bool:
        """Whether a sample follows the policy's own distribution."""
        ...


@dataclass(frozen=True)
class PreviousChunk:
    """The last chunk of an episode, as a sampler needs it that starts from there.

    Attributes:
        sample: as it was sampled, normalized, shape ``(horizon, trajectory_dim)``.
        elapsed: ticks from its first played action to the observation of the next chunk, 0 or more.
    """

    sample: Tensor
    elapsed: int


@runtime_checkable
class ChunkReusingSampler(Protocol):
    """A sampler that starts from an episode's last chunk; without one it samples the first."""

    def continuing(self, previous: Sequence[PreviousChunk | None]) -> ChunkSampler:
        """Return a sampler for one batch: for each row the chunk before, None if there was none."""
        ...


def reduced_precision(sampler: Any) -> str | None:
    """Tell in which precision a sampler computes the network, where it is a reduced one.

    Args:
        sampler: any; one that computes the network in another precision has it as ``precision``.

    Returns:
        Such as ``"bf16"``: the reduced network is then the target, and exact means exactly *its* distribution. None for
        the network as it was loaded.
    """
    precision = getattr(sampler, "precision", None)
    return None if precision in (None, "f32") else str(precision)


def network_of(sampler: Any) -> dict[str, str]:
    """Tell what evaluates the network for a sampler, for a manifest.

    Args:
        sampler: any; a compiled one has a ``backend``, None if it chooses by device.

    Returns:
        ``backend`` and ``precision``; empty for the network as it was loaded, in PyTorch.
    """
    if not hasattr(sampler, "backend"):
        return {}
    return {"backend": sampler.backend or "auto", "precision": reduced_precision(sampler) or "f32"}


@runtime_checkable
class SampleCost(Protocol):
    """What a sampler spent, entry by entry of the batch; fields about rounds are None for samplers without rounds."""

    @property
    def passes(self) -> Tensor:
        """Sequential network evaluations (NFE), shape ``(batch,)``."""
        ...

    @property
    def evaluations(self) -> Tensor:
        """Rows that the network computed, shape ``(batch,)``."""
        ...

    @property
    def start(self) -> Tensor | None:
        """Position in the chain at which each round began, −1 once finished, shape ``(rounds, batch)``."""
        ...

    @property
    def proposed(self) -> Tensor | None:
        """Steps drafted in each round, −1 once finished, shape ``(rounds, batch)``."""
        ...

    @property
    def accepted(self) -> Tensor | None:
        """Drafted steps accepted in each round, −1 once finished, shape ``(rounds, batch)``."""
        ...


@runtime_checkable
class PredictedChunk(Protocol):
    """Actions and what they cost."""

    @property
    def actions(self) -> NDArray[np.float32]:
        """Those to execute, in the environment's units, shape ``(batch, n_action_steps, action_dim)``."""
        ...

    @property
    def prediction(self) -> NDArray[np.float32]:
        """The whole chunk, shape ``(batch, horizon, action_dim)``, in the environment's units."""
        ...

    @property
    def result(self) -> SampleCost:
        """What they cost."""
        ...


@runtime_checkable
class ChunkPolicyConfig(Protocol):
    """What of a policy's configuration concerns its users."""

    @property
    def n_obs_steps(self) -> int:
        """Observation steps that the policy sees."""
        ...

    @property
    def n_action_steps(self) -> int:
        """Actions of a chunk that are played before the next one is asked for."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, to tell one policy from another."""
        ...


@runtime_checkable
class ChunkPolicy(Protocol):
    """Observation history in, action chunk out.

    For pre-drafting it also has ``predraft(observation, sampler, generator)``, which returns a
    :class:`specpolicy.speculative.predraft.PreDraft`, and ``predict_action`` takes one as ``predraft=``.
    """

    @property
    def config(self) -> ChunkPolicyConfig:
        """Its configuration."""
        ...

    def predict_action(
        self, observation: Observation, sampler: Any, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> PredictedChunk:
        """Predict one chunk for each observation: arrays ``(batch, n_obs_steps, …)``, one generator an entry."""
        ...
