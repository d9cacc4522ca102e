"""How important it is to compute a token now.

Importance = history × future × starvation (SpecDiff, Pan et al. 2025): the attention that the token received at the
previous step and will receive at the nearest speculative one, each summed over layers, heads and queries, times
exp(how often it has been served from the cache since it was computed).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOOR = 1e-3
"""Least score, relative to the mean of the row. Without one a token that nobody looked at (the last one under a causal
mask, once its own query is not computed) has importance 0, which no starvation can raise."""


def log_importance(
    history: Float[Tensor, "b tokens"], future: Float[Tensor, "b tokens"] | None, served: Int[Tensor, "b tokens"]
) -> Float[Tensor, "b tokens"]:
    """Logarithm of the importance of each token; only differences within a row mean something.

    Args:
        history: attention received at the previous step, 0 or more.
        future: likewise at the nearest speculative step; None leaves the factor out.
        served: how often each token has come from the cache since it was last computed.
    """
    log = _log_score(history) + served.to(history.dtype)
    return log if future is None else log + _log_score(future)


def _log_score(received: Float[Tensor, "b tokens"]) -> Float[Tensor, "b tokens"]:
    tiny = torch.finfo(received.dtype).tiny  # a row of zeros says that all tokens are alike
    return torch.log(received / received.mean(-1, keepdim=True).clamp(min=tiny) + FLOOR)
