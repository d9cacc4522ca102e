"""diffusers' ``DiTTransformer2DModel``: attention among patches in ``BasicTransformerBlock`` (Peebles & Xie 2023)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor

from specpolicy.caching.hook import Current, answer_attention, gate

from .projections import heads, joined, left


class SelfAttention:
    """In place of ``AttnProcessor2_0`` for attention without context."""

    def __init__(self, current: Current, layer: int) -> None:
        self.current, self.layer = current, layer

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Tensor:
        """See diffusers."""
        query = heads(attn, attn.to_q, hidden_states, attn.norm_q)
        key = heads(attn, attn.to_k, hidden_states, attn.norm_k)
        value = heads(attn, attn.to_v, hidden_states)
        return left(attn, joined(self.current().attend(self.layer, query, key, value)))


def install(network: Any, current: Current, stack: ExitStack) -> None:
    """Let the cache into a ``DiTTransformer2DModel``."""
    blocks = network.transformer_blocks
    gate(stack, blocks[0], blocks[-1], current)
    for layer, block in enumerate(blocks):
        answer_attention(stack, block.attn1, "AttnProcessor2_0", SelfAttention(current, layer))
