"""How many steps to draft from each position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

Window = int | Sequence[int]
"""One length for the whole chain, or one for each of its K positions."""


def window_lengths(window: object, reach: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    """Steps to draft from each position, never past the steps that have noise.

    Args:
        window: a :data:`Window`: at least 1 everywhere, longer than the chain is fine.
        reach: how many steps can be drafted from each position.

    Raises:
        ValueError: a length is below 1, or the sequence does not have K entries.
    """
    lengths = torch.as_tensor(window, device=reach.device)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"window={window!r}; it must be a whole number of steps")
    if lengths.ndim and len(lengths) != len(reach):
        raise ValueError(f"window has {len(lengths)} entries for a chain of {len(reach)} steps; give one for each step")
    if (lengths < 1).any():
        raise ValueError(f"window={window!r}; draft at least 1 step a round (for none, use SequentialSampler)")
    return torch.minimum(lengths.expand(len(reach)), reach)
