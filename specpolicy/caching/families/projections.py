"""Queries, keys and values of diffusers' ``Attention``."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


def heads(
    attention: Any, projection: nn.Module, hidden: Float[Tensor, "b tokens width"], norm: nn.Module | None = None
) -> Float[Tensor, "b heads tokens part"]:
    """Project tokens, give every head its part, and normalize the parts if the attention does."""
    projected = projection(hidden)
    parts = projected.view(*projected.shape[:2], attention.heads, -1).transpose(1, 2)
    return parts if norm is None else norm(parts)


def joined(mixed: Float[Tensor, "b heads tokens part"]) -> Float[Tensor, "b tokens width"]:
    """The parts of all heads beside one another."""
    return mixed.transpose(1, 2).flatten(2)


def left(attention: Any, mixed: Float[Tensor, "b tokens width"]) -> Float[Tensor, "b tokens width"]:
    """The output projection, and its dropout."""
    return attention.to_out[1](attention.to_out[0](mixed))
