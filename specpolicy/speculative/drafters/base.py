"""What a drafter is given and what it hands back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond
from specpolicy.speculative.linear_chain import MultiStepTransition


class UnverifiedTail(NamedTuple):
    """Steps drafted and evaluated but not reached, from the present position of n chains on.

    Attributes:
        states: old drafted states, shape ``(n, w + 1, *event)``; the first is the one in place of which the chain has
            come to its present state.
        drafted_x0: the x̂0 that made them, ``(n, w, *event)``. target_x0: the target's x̂0 at them, as ``states``.
        noise: the noises that made them, ``(n, w, *event)``; nothing that decided anything has looked at them.
        num_noises: how many of the noises are valid, shape ``(n,)``; ``num_noises + 1`` states are. −1: nothing is.
    """

    states: Float[Tensor, "n w1 ..."]
    drafted_x0: Float[Tensor, "n w ..."]
    target_x0: Float[Tensor, "n w1 ..."]
    noise: Float[Tensor, "n w ..."]
    num_noises: Int[Tensor, " n"]

    @staticmethod
    def none(x: Float[Tensor, "n ..."], width: int) -> UnverifiedTail:
        """Nothing known of chains at ``x``, in the shapes of windows of ``width`` steps."""
        states, steps = (x.new_zeros((len(x), columns, *x.shape[1:])) for columns in (width + 1, width))
        nothing = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
        return UnverifiedTail(states, steps, states.clone(), steps.clone(), nothing)

    @staticmethod
    def after(
        states: Float[Tensor, "n w1 ..."],
        drafted_x0: Float[Tensor, "n _ ..."],
        target_x0: Float[Tensor, "n w1 ..."],
        noise: Float[Tensor, "n w ..."],
        length: Int[Tensor, " n"],
        accepted: Int[Tensor, " n"],
    ) -> UnverifiedTail:
        """What a round leaves of which ``accepted`` of ``length`` drafted steps were kept, and one more was made."""
        begin = accepted[:, None] + 1
        step = begin + torch.arange(noise.shape[1], device=begin.device)
        state = begin + torch.arange(noise.shape[1] + 1, device=begin.device)
        return UnverifiedTail(
            states=_columns(states, state),
            drafted_x0=_columns(drafted_x0.expand_as(noise), step),
            target_x0=_columns(target_x0, state),
            noise=_columns(noise, step),
            num_noises=(length - accepted - 1).clamp(min=-1),
        )

    def width(self, width: int) -> UnverifiedTail:
        """The same for windows of ``width`` steps: cut off, or filled up with what does not count."""
        states, drafted, target, noise = (
            _resized(part, columns)
            for part, columns in zip(self[:4], (width + 1, width, width + 1, width), strict=True)
        )
        return UnverifiedTail(states, drafted, target, noise, self.num_noises.clamp(max=width))

    def rows(self, which: Int[Tensor, " m"]) -> UnverifiedTail:
        """Of some of the chains."""
        return UnverifiedTail(*(part[which] for part in self))

    def noises(self, fresh: Float[Tensor, "n w ..."]) -> Float[Tensor, "n w ..."]:
        """To draft with: the old noises as far as there are any, then ``fresh`` ones."""
        old = torch.arange(fresh.shape[1], device=fresh.device) < self.num_noises[:, None]
        return torch.where(old.view(*old.shape, *[1] * (fresh.ndim - 2)), self.width(fresh.shape[1]).noise, fresh)


def within_bounds(x0: Float[Tensor, "n w d"], x: Float[Tensor, "n ..."], factor: float = 1e4) -> Bool[Tensor, "n w"]:
    """Find the predictions that a draft may use: finite, and not far outside the range of the data and of the chain.

    Args:
        x0: predictions of x̂0 or of its change, shape ``(n, w, d)``.
        x: states of the chains, shape ``(n, *event)``.
        factor: numbers may be so many times as large as the largest of the state, or as 1 if that is below 1.

    Returns:
        Shape ``(n, w)``.
    """
    bound = factor * x.abs().flatten(1).amax(dim=1).clamp(min=1.0)
    return x0.abs().amax(dim=2) <= bound[:, None]  # false for NaN


def _columns(part: Tensor, which: Int[Tensor, "n w"]) -> Tensor:
    row = torch.arange(len(part), device=part.device)[:, None]
    return part[row, which.clamp(max=part.shape[1] - 1)]


def _resized(part: Tensor, columns: int) -> Tensor:
    if part.shape[1] >= columns:
        return part[:, :columns]
    return torch.cat([part, part.new_zeros((len(part), columns - part.shape[1], *part.shape[2:]))], dim=1)


@dataclass(frozen=True)
class DraftStart:
    """Where a round begins, for n chains.

    Attributes:
        chain: the process and its linear algebra, on the states' device and dtype.
        k: position of each chain, shape ``(n,)``.
        x: its state, shape ``(n, *event)``.
        last_eval_k, last_eval_x, last_eval_x0: position, state and x̂0 of the latest evaluation of the target.
        noise: the noises ξ to draft with, shape ``(n, w, *event)``.
        cond: the conditions of these chains, for drafters that run a network of their own.
        tail: for drafters that recycle: what the last evaluation found of steps not reached. ``noise`` begins with its
            noises.
    """

    chain: MultiStepTransition
    k: Int[Tensor, " n"]
    x: Float[Tensor, "n ..."]
    last_eval_k: Int[Tensor, " n"]
    last_eval_x: Float[Tensor, "n ..."]
    last_eval_x0: Float[Tensor, "n ..."]
    noise: Float[Tensor, "n w ..."]
    cond: Cond
    tail: UnverifiedTail | None = None


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
        refreshes: whether each round first evaluates the target's x̂0 at its present state.
        recycles: whether it drafts with noises of the last round that its verifier has not looked at; see
            :class:`~specpolicy.speculative.drafters.base.UnverifiedTail`.
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
