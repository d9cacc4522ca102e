"""Draws from the residual: after sample verification here, after block verification in ``block.py``."""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from .. import residual
from .base import Rejection, StepwiseVerifier


def residual_repair(rejection: Rejection) -> Float64[Tensor, " n"]:
    """A coordinate from the residual max(0, c · target − draft), normalized (Soen et al., Prop. 3.1)."""
    return residual.draw(rejection.uniform, rejection.log_scale, rejection.distance)


class ResidualVerifier(StepwiseVerifier):
    """Judge step by step; draw the first rejected step from max(0, target − draft), normalized. Exact."""

    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """A residual draw with c = 1."""
        return residual_repair(rejection)
