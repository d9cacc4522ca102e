"""What has to be known of each kind of network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from specpolicy.approximate.specdiff.importance import CachingError
from specpolicy.approximate.specdiff.token_cache import Current, Layout, answer_attention, route_tokens
from specpolicy.utils.attributes import replaced


def heads(
    attention: Any, projection: nn.Module, hidden: Float[Tensor, "b tokens width"], norm: nn.Module | None = None
) -> Float[Tensor, "b heads tokens part"]:
    """Project tokens, give every head its part, and normalize the parts if the attention does."""
    projected = projection(hidden)
    parts = projected.view(*projected.shape[:2], attention.heads, -1).transpose(1, 2)
    return parts if norm is None else norm(parts)


def merge_heads(mixed: Float[Tensor, "b heads tokens part"]) -> Float[Tensor, "b tokens width"]:
    """The parts of all heads beside one another."""
    return mixed.transpose(1, 2).flatten(2)


def left(attention: Any, mixed: Float[Tensor, "b tokens width"]) -> Float[Tensor, "b tokens width"]:
    """The output projection, and its dropout."""
    return attention.to_out[1](attention.to_out[0](mixed))


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
        return left(attn, merge_heads(self.current().attend(self.layer, query, key, value)))


def install_dit(network: Any, current: Current, stack: ExitStack) -> None:
    """Let the cache into a ``DiTTransformer2DModel``."""
    blocks = network.transformer_blocks
    route_tokens(stack, blocks[0], blocks[-1], current)
    for layer, block in enumerate(blocks):
        answer_attention(stack, block.attn1, "AttnProcessor2_0", SelfAttention(current, layer))


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
            return left(attn, merge_heads(self.current().attend(self.layer, query, key, value)))
        told = encoder_hidden_states
        query = torch.cat([query, heads(attn, attn.add_q_proj, told, attn.norm_added_q)], 2)
        key = torch.cat([key, heads(attn, attn.add_k_proj, told, attn.norm_added_k)], 2)
        value = torch.cat([value, heads(attn, attn.add_v_proj, told)], 2)
        layout = Layout(context=told.shape[1])
        mixed = merge_heads(self.current().attend(self.layer, query, key, value, layout))
        patches, context = mixed[:, : hidden_states.shape[1]], mixed[:, hidden_states.shape[1] :]
        return left(attn, patches), context if attn.context_pre_only else attn.to_add_out(context)


def install_sd3(network: Any, current: Current, stack: ExitStack) -> None:
    """Let the cache into an ``SD3Transformer2DModel``."""
    blocks = network.transformer_blocks
    route_tokens(stack, blocks[0], blocks[-1], current, place=1)
    attentions = [each for block in blocks for each in (block.attn, block.attn2) if each is not None]
    for layer, attention in enumerate(attentions):
        answer_attention(stack, attention, "JointAttnProcessor2_0", JointAttention(current, layer))


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
        mixed = merge_heads(cache.attend(self.layer, query, key, value, layout))
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


def install_flux(network: Any, current: Current, stack: ExitStack) -> None:
    """Let the cache into a ``FluxTransformer2DModel``.

    Raises:
        CachingError: the network has no double block.
    """
    if not len(network.transformer_blocks):
        raise CachingError("a FLUX network without double blocks cannot be cached")
    blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
    route_tokens(stack, blocks[0], blocks[-1], current, place=1)
    context = [0]
    for layer, block in enumerate(blocks):
        answer_attention(stack, block.attn, "FluxAttnProcessor", RotaryAttention(current, layer, context))


def install_policy(network: Any, current: Current, stack: ExitStack) -> None:
    """Let the cache into a ``TransformerDenoiser``."""
    route_tokens(stack, network.blocks[0], network.blocks[-1], current)
    for layer, block in enumerate(network.blocks):
        mix = partial(_mix, current, layer, block.attention.causal)
        stack.enter_context(replaced(block.attention, "mix", mix))


def _mix(current: Current, layer: int, causal: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return current().attend(layer, query, key, value, causal=causal)


@dataclass(frozen=True)
class CachedFamily:
    """One kind of network.

    Attributes:
        install: lets the cache into a network until the stack is closed.
        times: what the network's own times are multiplied by to be the scheduler's.
    """

    install: Callable[[Any, Current, ExitStack], None]
    times: float = 1.0


FAMILIES: dict[str, CachedFamily] = {
    "TransformerDenoiser": CachedFamily(install_policy),
    "DiTTransformer2DModel": CachedFamily(install_dit),
    "SD3Transformer2DModel": CachedFamily(install_sd3),
    "FluxTransformer2DModel": CachedFamily(install_flux, times=1000.0),
}
"""The networks that can be cached, by class name: this library's own, and three of diffusers."""


def find_network(denoiser: Any) -> tuple[nn.Module, CachedFamily]:
    """The network inside a policy or any other module that can be cached, and its kind.

    Raises:
        CachingError: there is none.
    """
    for module in denoiser.modules() if isinstance(denoiser, nn.Module) else ():
        for each in type(module).__mro__:
            if each.__name__ in FAMILIES:
                return module, FAMILIES[each.__name__]
    network = getattr(denoiser, "network", denoiser)
    raise CachingError(
        f"{type(network).__name__} has no tokens to cache; caching works for {', '.join(FAMILIES)}. A policy with "
        "tokens is trained by `specpolicy train policy=transformer`"
    )
