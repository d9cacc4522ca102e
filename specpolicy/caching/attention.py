"""Attention that tells how much of it each token received."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def attend(
    query: Float[Tensor, "b heads asking part"],
    key: Float[Tensor, "b heads asked part"],
    value: Float[Tensor, "b heads asked width"],
    allowed: Bool[Tensor, "#b 1 asking asked"] | None = None,
) -> tuple[Float[Tensor, "b heads asking width"], Float[Tensor, "b asked"]]:
    """Scaled dot-product attention, and the attention on each key, summed over heads and queries.

    The scores are held at once, as fused attention does not: ``b · heads · asking · asked`` numbers.

    Args:
        query, key, value: as for ``torch.nn.functional.scaled_dot_product_attention``.
        allowed: false where a query must not look.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    # in float32 at least; a sum of thousands of bfloat16 numbers is worth nothing
    share = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return share.to(value.dtype) @ value, share.sum((1, 2))
