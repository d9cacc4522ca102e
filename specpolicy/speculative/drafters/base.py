"""What a drafter is given and what it hands back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Cond
from ..leftover import Leftover
from ..linear_chain import LinearChain


@dataclass(frozen=True)
class DraftStart:
    """Where a round begins, for n chains.

    Attributes:
        chain: the process and its linear algebra, on the states' device and dtype.
        k: position of each chain, shape ``(n,)``.
        x: its state, shape ``(n, *event)``.
        anchor_k, anchor_x, anchor_x0: the latest state at which the target's x̂0 is known (position, state, x̂0).
        noise: the noises ξ to draft with, shape ``(n, w, *event)``.
        cond: the conditions of these chains, for drafters that run a network of their own.
        leftover: for drafters that recycle: what the last pass said of steps not reached. ``noise`` begins with its
            noises.
    """

    chain: LinearChain
    k: Int[Tensor, " n"]
    x: Float[Tensor, "n ..."]
    anchor_k: Int[Tensor, " n"]
    anchor_x: Float[Tensor, "n ..."]
    anchor_x0: Float[Tensor, "n ..."]
    noise: Float[Tensor, "n w ..."]
    cond: Cond
    leftover: Leftover | None = None


@dataclass(frozen=True)
class Draft:
    """A drafted window.

    Attributes:
        states: x_k … x_{k+w}, shape ``(n, w + 1, *event)``; the first is the given start.
        x0: x̂0 that each drafted step used, shape ``(n, w, *event)``, or ``(n, 1, *event)`` if they all used the same.
    """

    states: Float[Tensor, "n w1 ..."]
    x0: Float[Tensor, "n w ..."]


class Drafter(ABC):
    """Proposes the next steps of the chain: x_{j+1} = a_j x_j + b_j x̂0_j + σ_j ξ_j with an x̂0_j of its own.

    Any rule for x̂0_j is allowed that looks only at what the chain has seen so far, the drafted states included: the
    verifier makes the result exact whatever the drafter does.

    Attributes:
        refreshes: whether each round first spends a network pass on the target's x̂0 at its present state.
        recycles: whether it drafts with noises of the last round that its verifier has not looked at; see
            :class:`~specpolicy.speculative.leftover.Leftover`.
    """

    refreshes: bool = False
    recycles: bool = False

    @property
    def name(self) -> str:
        """What tells it from drafters that keep other shares of their drafts."""
        return type(self).__name__

    @abstractmethod
    def draft(self, start: DraftStart) -> Draft:
        """Draft as many steps as ``start.noise`` has columns."""
