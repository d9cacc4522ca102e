"""What stands in for x̂0 before the first network pass.

At pure noise the signal-to-noise ratio hardly moves in a step, so that a rough x̂0 drafts the first window about as well
as the network's own would, and a pass is saved. The first batched pass verifies the drafts as any other does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.denoiser import Cond


class X0Guess(ABC):
    """Guesses x̂0 from the condition alone. Any guess keeps the sampler exact."""

    @abstractmethod
    def x0(self, x: Float[Tensor, "n ..."], cond: Cond) -> Float[Tensor, "n ..."]:
        """x̂0 of n chains at pure noise ``x`` under the rows of ``cond``."""


class ZeroGuess(X0Guess):
    """x̂0 = 0, the middle of normalized data."""

    def x0(self, x: Float[Tensor, "n ..."], cond: Cond) -> Float[Tensor, "n ..."]:
        """Zeros of the shape of ``x``."""
        return torch.zeros_like(x)


class LinearGuess(X0Guess):
    """x̂0 = W·cond + c, for conditions that are one tensor.

    Args:
        weight: W, shape ``(event numbers, condition numbers)``.
        offset: c, shape ``(event numbers,)``.
    """

    def __init__(self, weight: Float[Tensor, "d c"], offset: Float[Tensor, " d"]) -> None:
        self.weight, self.offset = weight, offset

    def x0(self, x: Float[Tensor, "n ..."], cond: Cond) -> Float[Tensor, "n ..."]:
        """The regression's value.

        Raises:
            ValueError: the condition is no tensor of the size that the regression was made for.
        """
        flat = flat_cond(cond, self.weight.shape[1])
        if (self.weight.device, self.weight.dtype) != (x.device, x.dtype):
            self.weight, self.offset = self.weight.to(x.device, x.dtype), self.offset.to(x.device, x.dtype)
        return torch.addmm(self.offset, flat.to(x.dtype), self.weight.T).view_as(x)


class KernelGuess(X0Guess):
    """x̂0 = W·cond + c + Σ_i α_i exp(−‖cond − centre_i‖² / 2): kernel ridge regression on top of a linear one.

    It knows the neighbourhoods of the conditions that it was fitted on, and far from all of them it is the linear one.

    Args:
        linear: W and c.
        scale: what conditions are multiplied by, number by number, to measure distances; shape ``(c,)``.
        centres: scaled conditions, shape ``(m, c)``.
        weights: α, shape ``(m, event numbers)``.
    """

    def __init__(
        self,
        linear: LinearGuess,
        scale: Float[Tensor, " c"],
        centres: Float[Tensor, "m c"],
        weights: Float[Tensor, "m d"],
    ) -> None:
        self.linear, self.scale, self.centres, self.weights = linear, scale, centres, weights

    def x0(self, x: Float[Tensor, "n ..."], cond: Cond) -> Float[Tensor, "n ..."]:
        """The regression's value. Raises ``ValueError`` as :class:`LinearGuess` does."""
        flat = flat_cond(cond, len(self.scale)).to(x.dtype)
        if (self.scale.device, self.scale.dtype) != (x.device, x.dtype):
            self.scale, self.centres, self.weights = (
                part.to(x.device, x.dtype) for part in (self.scale, self.centres, self.weights)
            )
        near = neighbourhood(flat * self.scale, self.centres)
        return self.linear.x0(x, cond) + (near @ self.weights).view_as(x)


def neighbourhood(points: Float[Tensor, "n c"], centres: Float[Tensor, "m c"]) -> Float[Tensor, "n m"]:
    """exp(−‖point − centre‖² / 2) for each pair."""
    return (-torch.cdist(points, centres).square() / 2).exp()


def flat_cond(cond: Cond, numbers: int) -> Float[Tensor, "n c"]:
    """A condition that is one tensor as rows of ``numbers``; anything else raises ``ValueError``."""
    if not isinstance(cond, Tensor) or cond[0].numel() != numbers:
        got = tuple(cond.shape) if isinstance(cond, Tensor) else type(cond).__name__
        raise ValueError(f"cond is {got}; this initial guess was fitted on tensors of {numbers} numbers a chain")
    return cond.flatten(1)
