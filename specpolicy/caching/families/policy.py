"""This library's transformer policy: every action is a token; observation and timestep are a memory beside them."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor

from specpolicy.caching.hook import Current, gate, replaced


def install(network: Any, current: Current, stack: ExitStack) -> None:
    """Let the cache into a ``TransformerDenoiser``."""
    gate(stack, network.blocks[0], network.blocks[-1], current)
    for layer, block in enumerate(network.blocks):
        mix = partial(_mix, current, layer, block.attention.causal)
        stack.enter_context(replaced(block.attention, "mix", mix))


def _mix(current: Current, layer: int, causal: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return current().attend(layer, query, key, value, causal=causal)
