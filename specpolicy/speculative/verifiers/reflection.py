"""Sample verification with reflection."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from .base import Comparison, Verdict, Verifier, first_rejection


class ReflectionVerifier(Verifier):
    """Judge step by step; mirror the first rejected noise in the plane between the two means.

    y = m_T + σ(ξ − 2(e·ξ)e), the reflection-maximal coupling (De Bortoli et al.; the Gaussian rejection sampler of
    ASD). Exact, and needs no new random numbers.
    """

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
        """The mirrored coordinate."""
        return -along
