"""What a caching sampler hands back."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.result import SampleResult


@dataclass(frozen=True)
class CachedResult(SampleResult):
    """As :class:`SampleResult`. ``passes`` and ``evaluations`` contain the speculative ones.

    Attributes:
        work: passes of each chain, each weighed by the share of the tokens that it computed, shape ``(B,)``.
    """

    work: Float[Tensor, " b"] | None = None
