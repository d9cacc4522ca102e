"""What a pass has found out about steps that the chain has not made: worth much to the next round's drafts.

A verifier that stops at the first miss has not looked at the noises beyond it. They are as good as fresh ones, and for
the states that were drafted with them the target's x̂0 is known. The next round drafts with the same noises: its states
differ from the old ones only by what the repair moved and by what the drafts were wrong about, which is little and of
few directions, where fresh noise is of all directions. A Picard iteration (Shih et al. 2023) of which every settled
step is exactly drawn; for token models, compare speculative Jacobi decoding (Teng et al. 2024).

Each drafted step still looks only at noises before its own, so that the law stays exact. It does not under block
verification, whose decision depends on all noises of the window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Leftover(NamedTuple):
    """Steps drafted and evaluated but not reached, from the present position of n chains on.

    Attributes:
        states: old drafted states, shape ``(n, w + 1, *event)``; the first is the one in place of which the chain has
            come to its present state.
        drafted_x0: the x̂0 that made them, ``(n, w, *event)``. target_x0: the target's x̂0 at them, as ``states``.
        noise: the noises that made them, ``(n, w, *event)``; nothing that decided anything has looked at them.
        left: how many of the noises there are, shape ``(n,)``; ``left + 1`` states are known. −1: nothing is.
    """

    states: Float[Tensor, "n w1 ..."]
    drafted_x0: Float[Tensor, "n w ..."]
    target_x0: Float[Tensor, "n w1 ..."]
    noise: Float[Tensor, "n w ..."]
    left: Int[Tensor, " n"]

    @staticmethod
    def none(x: Float[Tensor, "n ..."], width: int) -> Leftover:
        """Nothing known of chains at ``x``, in the shapes of windows of ``width`` steps."""
        states, steps = (x.new_zeros((len(x), columns, *x.shape[1:])) for columns in (width + 1, width))
        nothing = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
        return Leftover(states, steps, states.clone(), steps.clone(), nothing)

    @staticmethod
    def after(
        states: Float[Tensor, "n w1 ..."],
        drafted_x0: Float[Tensor, "n _ ..."],
        target_x0: Float[Tensor, "n w1 ..."],
        noise: Float[Tensor, "n w ..."],
        length: Int[Tensor, " n"],
        accepted: Int[Tensor, " n"],
    ) -> Leftover:
        """What a round leaves of which ``accepted`` of ``length`` drafted steps were kept, and one more was made."""
        begin = accepted[:, None] + 1
        step = begin + torch.arange(noise.shape[1], device=begin.device)
        state = begin + torch.arange(noise.shape[1] + 1, device=begin.device)
        return Leftover(
            states=_columns(states, state),
            drafted_x0=_columns(drafted_x0.expand_as(noise), step),
            target_x0=_columns(target_x0, state),
            noise=_columns(noise, step),
            left=(length - accepted - 1).clamp(min=-1),
        )

    def width(self, width: int) -> Leftover:
        """The same for windows of ``width`` steps: cut off, or filled up with what does not count."""
        states, drafted, target, noise = (
            _resized(part, columns)
            for part, columns in zip(self[:4], (width + 1, width, width + 1, width), strict=True)
        )
        return Leftover(states, drafted, target, noise, self.left.clamp(max=width))

    def rows(self, which: Int[Tensor, " m"]) -> Leftover:
        """Of some of the chains."""
        return Leftover(*(part[which] for part in self))

    def noises(self, fresh: Float[Tensor, "n w ..."]) -> Float[Tensor, "n w ..."]:
        """To draft with: the old noises as far as there are any, then ``fresh`` ones."""
        old = torch.arange(fresh.shape[1], device=fresh.device) < self.left[:, None]
        return torch.where(old.view(*old.shape, *[1] * (fresh.ndim - 2)), self.width(fresh.shape[1]).noise, fresh)


def _columns(part: Tensor, which: Int[Tensor, "n w"]) -> Tensor:
    row = torch.arange(len(part), device=part.device)[:, None]
    return part[row, which.clamp(max=part.shape[1] - 1)]


def _resized(part: Tensor, columns: int) -> Tensor:
    if part.shape[1] >= columns:
        return part[:, :columns]
    return torch.cat([part, part.new_zeros((len(part), columns - part.shape[1], *part.shape[2:]))], dim=1)
