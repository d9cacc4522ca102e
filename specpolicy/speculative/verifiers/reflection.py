"""Sample verification with reflection."""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from .base import Rejection, StepwiseVerifier


class ReflectionVerifier(StepwiseVerifier):
    """Judge step by step; mirror the first rejected noise in the plane between the two means.

    y = m_T + σ(ξ − 2(e·ξ)e), the reflection-maximal coupling (De Bortoli et al.; the Gaussian rejection sampler of
    ASD). Exact, and needs no new random numbers.
    """

    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """The mirrored coordinate."""
        return -rejection.along
