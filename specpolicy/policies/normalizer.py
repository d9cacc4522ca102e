"""Min–max scaling of observations and actions to [−1, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_RANGE = 1e-4
"""Coordinates that vary by no more than this in the data are taken as constant."""


class MinMaxNormalizer(nn.Module):
    """Affine map of each coordinate from its range in the data to [−1, 1].

    A coordinate that does not move in the data (range below 1e-4) is centred but not stretched, so that sensor noise
    is not blown up. Values outside the range map outside [−1, 1]; nothing is clipped.

    Args:
        low: smallest value of each coordinate in the data, shape ``(dim,)``.
        high: largest value of each coordinate, same shape.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Float[Tensor, " dim"], high: Float[Tensor, " dim"]) -> None:
        super().__init__()
        if low.shape != high.shape or low.ndim != 1:
            raise ValueError(f"low {tuple(low.shape)} and high {tuple(high.shape)} must be vectors of one length")
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    @classmethod
    def identity(cls, dim: int) -> MinMaxNormalizer:
        """Make the map that changes nothing, to be filled by ``load_state_dict``."""
        return cls(-torch.ones(dim), torch.ones(dim))

    @classmethod
    def fit(cls, data: Float[Tensor, "n dim"]) -> MinMaxNormalizer:
        """Read the range off ``data``."""
        return cls(data.amin(dim=0), data.amax(dim=0))

    def _centre_and_scale(self) -> tuple[Tensor, Tensor]:
        half = (self.high - self.low) / 2
        return (self.high + self.low) / 2, torch.where(half > SMALLEST_RANGE / 2, half, torch.ones_like(half))

    def normalize(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map data units to [−1, 1]."""
        centre, scale = self._centre_and_scale()
        return (value - centre) / scale

    def unnormalize(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map [−1, 1] to data units."""
        centre, scale = self._centre_and_scale()
        return value * scale + centre
