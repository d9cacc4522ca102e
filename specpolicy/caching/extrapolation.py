"""Cached features of every token, and what they are expected to be now.

SpecDiff extrapolates from the last three cached features with normalised weights ∝ e^{-i} (T_{t+i} - T_t). Taken by
the letter this is either a vector where a weight is expected (T as features), or a mean of old features that is older
than the last of them, so worse than a copy (T as times). What gives an extrapolation is this: with F_0, F_1, F_2 the
features at times T_0, T_1, T_2, the newest first, the rates of change (F_0 - F_i) / (T_0 - T_i), i = 1 and 2, are
averaged with normalised weights ∝ e^{-i}, and the mean rate goes on from F_0. Hence

    F = F_0 + (T - T_0) Σ_i w_i (F_0 - F_i) / (T_0 - T_i),     w_i = e^{-i} / Σ_j e^{-j},

an affine combination of the three. It is exact for features that are linear in time, however uneven the times are.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KEPT = 3
"""Features kept of each token."""


class FeatureHistory:
    """The last features of each token, each with the time at which it was computed.

    Args:
        like: features of all tokens, shape ``(b, tokens, width)``: for shape, dtype and device.

    Attributes:
        features: newest first, shape ``(KEPT, b, tokens, width)``. times: theirs, shape ``(KEPT, b, tokens)``.
        held: how many of them there are, shape ``(b, tokens)``.
    """

    def __init__(self, like: Float[Tensor, "b tokens width"]) -> None:
        self.features = like.new_zeros((KEPT, *like.shape))
        self.times = torch.zeros((KEPT, *like.shape[:2]), device=like.device)
        self.held = torch.zeros(like.shape[:2], dtype=torch.long, device=like.device)

    def push(
        self, features: Float[Tensor, "b chosen width"], time: float, index: Int[Tensor, "b chosen"] | None
    ) -> None:
        """Keep features of the tokens ``index`` (None: of all of them) that were computed at ``time``."""
        if index is None:
            self.features = torch.cat([features[None], self.features[:-1]])
            self.times = torch.cat([torch.full_like(self.times[:1], time), self.times[:-1]])
            self.held = (self.held + 1).clamp(max=KEPT)
            return
        wide = index[..., None].expand(-1, -1, features.shape[-1])
        for age in reversed(range(1, KEPT)):
            self.features[age].scatter_(1, wide, self.features[age - 1].gather(1, wide))
            self.times[age].scatter_(1, index, self.times[age - 1].gather(1, index))
        self.features[0].scatter_(1, wide, features)
        self.times[0].scatter_(1, index, time)
        self.held.scatter_(1, index, (self.held.gather(1, index) + 1).clamp(max=KEPT))

    def weights(self, time: float, copied: Bool[Tensor, "b tokens"]) -> Float[Tensor, "kept b tokens"]:
        """Weights of the kept features at ``time``, newest first; they sum to 1. ``copied`` takes the newest alone."""
        rates = []
        for age in range(1, KEPT):
            there = (self.held > age) & ~copied
            gap = torch.where(there, self.times[0] - self.times[age], 1.0)
            rates.append(torch.where(there, math.exp(-age) / gap, 0.0))
        known = sum((self.held > age).to(self.times.dtype) * math.exp(-age) for age in range(1, KEPT))
        ahead = (time - self.times[0]) / torch.as_tensor(known).clamp(min=math.exp(-KEPT))
        forward = [ahead * rate for rate in rates]
        return torch.stack([1 + sum(forward, torch.zeros_like(ahead)), *(-each for each in forward)])

    def predict(self, time: float, copied: Bool[Tensor, "b tokens"]) -> Float[Tensor, "b tokens width"]:
        """Features expected at ``time``. Those computed at ``time`` itself come back as they are."""
        weights = self.weights(time, copied)[..., None]
        predicted = weights[0] * self.features[0]  # in float32 at least: the weights have to sum to 1
        for age in range(1, KEPT):
            predicted.addcmul_(weights[age].to(predicted.dtype), self.features[age].to(predicted.dtype))
        return predicted.to(self.features.dtype)
