"""Counting arithmetic instead of trusting formulas for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _fused(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]


def count_operations(call: Callable[[], Any]) -> int:
    """Multiplications and additions of all matrix products, convolutions and attentions that ``call()`` makes.

    Counted by torch's dispatcher as they happen; element-wise arithmetic is not in them.
    """
    counter: Any = FlopCounterMode(display=False, custom_mapping={_FUSED_ON_CPU: _fused})
    with counter:
        call()
    return int(counter.get_total_flops())
