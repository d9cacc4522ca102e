"""Finer scales of an observation vector."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TimestepEmbedding(nn.Module):
    """Sines and cosines of the timestep, then a two-layer MLP.

    Args:
        dim: length of the embedding.
        mlp: False leaves it at the sines and cosines.
    """

    frequencies: Tensor

    def __init__(self, dim: int, mlp: bool = True) -> None:
        super().__init__()
        half = dim // 2
        values = _frequencies(half, lambda place: torch.exp(-math.log(10_000.0) / (half - 1) * place))
        self.register_buffer("frequencies", values, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)) if mlp else nn.Identity()

    def forward(self, timestep: Float[Tensor, " n"]) -> Float[Tensor, "n dim"]:
        """Embed timesteps 0 … T − 1."""
        angles = timestep[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


class FourierFeatures(nn.Module):
    """A vector followed by the sines and cosines of its coordinates at doubling frequencies.

    MLPs learn functions that change fast late or never, and where a part must go into a hole, a millimetre
    changes the action while it is a few thousandths of a normalized coordinate (Tancik et al. 2020, section 5).

    Args:
        count: frequencies π, 2π, 4π, …; 0 hands the vector on as it is. Coordinates lie in [-1, 1].
    """

    frequencies: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        if count < 0:
            raise ValueError(f"octaves must be 0 or more, got {count}")
        values = _frequencies(count, lambda place: math.pi * 2.0**place)
        self.register_buffer("frequencies", values, persistent=False)

    def width(self, dim: int) -> int:
        """Length of what a vector of length ``dim`` becomes."""
        return dim * (1 + 2 * len(self.frequencies))

    def forward(self, vector: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n wide"]:
        """Widen ``vector``."""
        if not len(self.frequencies):
            return vector
        angles = (vector[..., None] * self.frequencies).flatten(-2)
        return torch.cat([vector, angles.sin(), angles.cos()], dim=-1)


def _frequencies(count: int, formula: Callable[[Tensor], Tensor]) -> Tensor:
    """``formula`` of 0, 1, 2, …; only the shape on the device ``meta``, where it would load torch's compiler in 3 s."""
    shape = torch.empty(count)
    return shape if shape.is_meta else formula(torch.arange(count))
