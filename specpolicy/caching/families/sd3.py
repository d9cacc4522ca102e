"""diffusers' ``SD3Transformer2DModel``: patches, then the prompt, in the joint attention of ``JointTransformerBlock``.

SD 3.5's second attention, among patches alone, is cached likewise (Esser et al. 2024).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from specpolicy.caching.hook import Current, answer_attention, gate
from specpolicy.caching.token_cache import Layout

from .projections import heads, joined, left


class JointAttention:
    """In place of ``JointAttnProcessor2_0``."""

    def __init__(self, current: Current, layer: int) -> None:
        self.current, self.layer = current, layer

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Any = None
    ) -> Any:
        """See diffusers."""
        query = heads(attn, attn.to_q, hidden_states, attn.norm_q)
        key = heads(attn, attn.to_k, hidden_states, attn.norm_k)
        value = heads(attn, attn.to_v, hidden_states)
        if encoder_hidden_states is None:
            return left(attn, joined(self.current().attend(self.layer, query, key, value)))
        told = encoder_hidden_states
        query = torch.cat([query, heads(attn, attn.add_q_proj, told, attn.norm_added_q)], 2)
        key = torch.cat([key, heads(attn, attn.add_k_proj, told, attn.norm_added_k)], 2)
        value = torch.cat([value, heads(attn, attn.add_v_proj, told)], 2)
        layout = Layout(context=told.shape[1])
        mixed = joined(self.current().attend(self.layer, query, key, value, layout))
        patches, context = mixed[:, : hidden_states.shape[1]], mixed[:, hidden_states.shape[1] :]
        return left(attn, patches), context if attn.context_pre_only else attn.to_add_out(context)


def install(network: Any, current: Current, stack: ExitStack) -> None:
    """Let the cache into an ``SD3Transformer2DModel``."""
    blocks = network.transformer_blocks
    gate(stack, blocks[0], blocks[-1], current, place=1)
    attentions = [each for block in blocks for each in (block.attn, block.attn2) if each is not None]
    for layer, attention in enumerate(attentions):
        answer_attention(stack, attention, "JointAttnProcessor2_0", JointAttention(current, layer))
