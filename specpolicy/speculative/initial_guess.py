"""Initial guesses of x̂0, which stand in for the first network evaluation.

At pure noise the signal-to-noise ratio hardly moves in a step, so a rough x̂0 drafts the first window about as well as
the network's own would, and one evaluation is saved. The first batched evaluation verifies the drafts like any other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.denoiser import Cond


class X0Guess(ABC):
    """Predicts x̂0 from the condition alone. Any guess keeps the sampler exact."""

    @abstractmethod
    def x0(self, x: Float[Tensor, "n ..."], cond: Cond) -> Float[Tensor, "n ..."]:
        """Predict x̂0 of n chains at pure noise.

        Args:
            x: their states, shape ``(n, *event)``.
            cond: their conditions.

        Returns:
            x̂0, of the shape of ``x``.
        """


class ZeroGuess(X0Guess):
    """Predicts x̂0 = 0, the middle of normalized data."""

    def x0(self, x: Float[Tensor, "n ..."], cond: Cond) -> Float[Tensor, "n ..."]:
        """Return zeros.

        Args:
            x: states, shape ``(n, *event)``.
            cond: not looked at.

        Returns:
            Zeros of the shape of ``x``.
        """
        return torch.zeros_like(x)


class LinearGuess(X0Guess):
    """Predicts x̂0 = W·cond + c, for conditions that are one tensor.

    Args:
        weight: W, shape ``(d, c)`` with d the numbers of an event and c those of a condition.
        offset: c, shape ``(d,)``.
    """

    def __init__(self, weight: Float[Tensor, "d c"], offset: Float[Tensor, " d"]) -> None:
        self.weight, self.offset = weight, offset

    def x0(self, x: Float[Tensor, "n ..."], cond: Cond) -> Float[Tensor, "n ..."]:
        """Evaluate the regression.

        Args:
            x: states, shape ``(n, *event)``; only their kind is looked at.
            cond: shape ``(n, ...)`` with c numbers a row.

        Returns:
            x̂0, of the shape of ``x``.

        Raises:
            ValueError: the condition is no tensor of the size that the regression was fitted on.
        """
        flat = flat_cond(cond, self.weight.shape[1])
        if (self.weight.device, self.weight.dtype) != (x.device, x.dtype):
            self.weight, self.offset = self.weight.to(x.device, x.dtype), self.offset.to(x.device, x.dtype)
        return torch.addmm(self.offset, flat.to(x.dtype), self.weight.T).view_as(x)


def flat_cond(cond: Cond, numbers: int) -> Float[Tensor, "n c"]:
    """Flatten a condition that is one tensor.

    Args:
        cond: of a batch.
        numbers: c, expected in each row.

    Returns:
        Shape ``(n, c)``.

    Raises:
        ValueError: it is no tensor, or has another size.
    """
    if not isinstance(cond, Tensor) or cond[0].numel() != numbers:
        got = tuple(cond.shape) if isinstance(cond, Tensor) else type(cond).__name__
        raise ValueError(f"cond is {got}; this initial guess was fitted on tensors of {numbers} numbers a chain")
    return cond.flatten(1)
