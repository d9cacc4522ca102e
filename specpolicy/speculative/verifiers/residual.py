"""Sample verification with a draw from the residual."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from .. import residual
from .base import Comparison, Verdict, Verifier, first_rejection


class ResidualVerifier(Verifier):
    """Judge step by step; draw the first rejected step from max(0, target − draft), normalized. Exact."""

    keeps_noise = True

    def judge(self, comparison: Comparison, uniform: Float64[Tensor, "n w"]) -> Verdict:
        """Stop at the first rejection; see :class:`Verifier`."""
        accepted = first_rejection(comparison, uniform)
        return Verdict(accepted, torch.zeros_like(accepted, dtype=torch.float64))

    def repair(
        self,
        distance: Float64[Tensor, " n"],
        along: Float64[Tensor, " n"],
        log_scale: Float64[Tensor, " n"],
        uniform: Float64[Tensor, " n"],
    ) -> Float64[Tensor, " n"]:
        """A residual draw with c = 1."""
        return residual.draw(uniform, log_scale, distance)
