"""What an evaluation needs to know of a policy and of a sampler: no more than this.

:class:`specpolicy.policies.DiffusionPolicy` and every sampler of this library fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Observation = Mapping[str, NDArray[Any]]


class Sampler(Protocol):
    """Anything a policy accepts as a sampler, if it says whether its samples follow the policy's law exactly."""

    @property
    def exact(self) -> bool:
        """Whether a sample follows the policy's own law."""
        ...


class Account(Protocol):
    """What a sampler spent, entry by entry of the batch; what speaks of rounds is None without them."""

    @property
    def passes(self) -> Tensor:
        """Network passes waited for in sequence, shape ``(batch,)``."""
        ...

    @property
    def evaluations(self) -> Tensor:
        """Network evaluations, those of one pass counted one by one, shape ``(batch,)``."""
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


class ActionChunk(Protocol):
    """Actions and their account."""

    @property
    def actions(self) -> NDArray[np.float32]:
        """Those to execute, in the environment's units, shape ``(batch, n_action_steps, action_dim)``."""
        ...

    @property
    def result(self) -> Account:
        """What they cost."""
        ...


class PolicyConfig(Protocol):
    """What of a policy's configuration concerns an evaluation."""

    @property
    def n_obs_steps(self) -> int:
        """Observation steps that the policy sees."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, to tell one policy from another."""
        ...


class Policy(Protocol):
    """Observation history in, action chunk out."""

    @property
    def config(self) -> PolicyConfig:
        """Its configuration."""
        ...

    def predict_action(
        self, observation: Observation, sampler: Any, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> ActionChunk:
        """One chunk for each observation: arrays ``(batch, n_obs_steps, dim)``, one generator an entry."""
        ...
