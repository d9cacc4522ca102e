"""diffusers' ``FluxTransformer2DModel``: the prompt, then patches, in double blocks and in single ones.

Both kinds of block attend to the joint sequence, with rotary positions; tokens enter before the first double block and
leave behind the last single one.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.caching.hook import Current, answer_attention, gate
from specpolicy.caching.settings import CachingError
from specpolicy.caching.token_cache import Layout

from .projections import heads, joined, left


class RotaryAttention:
    """In place of ``FluxAttnProcessor``.

    Args:
        context: of the pass that goes on: how many tokens the prompt has. The single blocks are not told.
    """

    def __init__(self, current: Current, layer: int, context: list[int]) -> None:
        self.current, self.layer, self.context = current, layer, context

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """See diffusers."""
        if attention_mask is not None:
            raise CachingError("a mask on FLUX's attention cannot be cached")
        query = heads(attn, attn.to_q, hidden_states, attn.norm_q)
        key = heads(attn, attn.to_k, hidden_states, attn.norm_k)
        value = heads(attn, attn.to_v, hidden_states)
        told = encoder_hidden_states
        if told is not None:
            self.context[0] = told.shape[1]
            query = torch.cat([heads(attn, attn.add_q_proj, told, attn.norm_added_q), query], 2)
            key = torch.cat([heads(attn, attn.add_k_proj, told, attn.norm_added_k), key], 2)
            value = torch.cat([heads(attn, attn.add_v_proj, told), value], 2)
        layout, cache = Layout(self.context[0], leading=True), self.current()
        if image_rotary_emb is not None:
            positions = cache.positions(layout)
            query, key = (_rotated(each, image_rotary_emb, positions) for each in (query, key))
        mixed = joined(cache.attend(self.layer, query, key, value, layout))
        if told is None:  # a single block projects by itself
            return mixed
        context, patches = mixed[:, : told.shape[1]], mixed[:, told.shape[1] :]
        return left(attn, patches), attn.to_add_out(context)


def _rotated(
    parts: Float[Tensor, "b heads asking part"],
    rotary: tuple[Float[Tensor, "joint part"], Float[Tensor, "joint part"]],
    positions: Int[Tensor, "b asking"] | None,
) -> Float[Tensor, "b heads asking part"]:
    """Rotary positions, as diffusers applies them, of a choice of positions that may differ from row to row."""
    cos, sin = (each[None, None] if positions is None else each[positions][:, None] for each in rotary)
    even, odd = parts[..., 0::2], parts[..., 1::2]
    turned = torch.stack([-odd, even], -1).flatten(3)
    return (parts.float() * cos + turned.float() * sin).to(parts.dtype)


def install(network: Any, current: Current, stack: ExitStack) -> None:
    """Let the cache into a ``FluxTransformer2DModel``.

    Raises:
        CachingError: the network has no double block.
    """
    if not len(network.transformer_blocks):
        raise CachingError("a FLUX network without double blocks cannot be cached")
    blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
    gate(stack, blocks[0], blocks[-1], current, place=1)
    context = [0]
    for layer, block in enumerate(blocks):
        answer_attention(stack, block.attn, "FluxAttnProcessor", RotaryAttention(current, layer, context))
