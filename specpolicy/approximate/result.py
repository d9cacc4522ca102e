"""What an approximate sampler hands back."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from specpolicy.speculative.result import SampleResult


@dataclass(frozen=True)
class AsdsvResult(SampleResult):
    """As :class:`SampleResult`, with these differences.

    ``passes`` and ``evaluations`` are the target network's alone. A round with ``accepted`` drafts advances by so many
    steps, and by one if there were none. ``x0`` is None: the target has not seen every state.

    Attributes:
        draft_passes: passes of the draft network in sequence, shape ``(B,)``. They take time too.
    """

    draft_passes: Int[Tensor, " b"] | None = None
