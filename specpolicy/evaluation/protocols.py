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
    def exact(self) -> bool: ...


class Account(Protocol):
    """What a sampler spent, entry by entry of the batch.

    ``passes`` and ``evaluations`` have shape ``(batch,)``. ``start`` (position in the chain at which a round began) and
    ``accepted`` (drafted steps accepted in it) have shape ``(rounds, batch)``, hold −1 where an entry was already
    finished, and are ``None`` for samplers without rounds.
    """

    @property
    def passes(self) -> Tensor: ...

    @property
    def evaluations(self) -> Tensor: ...

    @property
    def start(self) -> Tensor | None: ...

    @property
    def accepted(self) -> Tensor | None: ...


class ActionChunk(Protocol):
    """Actions to execute, shape ``(batch, executed_actions, action_dim)``, and their account."""

    @property
    def actions(self) -> NDArray[np.float32]: ...

    @property
    def result(self) -> Account: ...


class PolicyConfig(Protocol):
    """``observation_horizon``: how many observation steps a policy sees."""

    @property
    def observation_horizon(self) -> int: ...


class Policy(Protocol):
    """Observation history in, action chunk out.

    ``act`` takes arrays of shape ``(batch, observation_horizon, dim)``, the present step last, and one generator for
    each entry of the batch.
    """

    @property
    def config(self) -> PolicyConfig: ...

    def act(
        self, observation: Observation, sampler: Any, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> ActionChunk: ...
