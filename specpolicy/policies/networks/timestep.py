"""How a denoiser is told the timestep."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TimestepEmbedding(nn.Module):
    """Sines and cosines of the timestep, then a two-layer perceptron."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half)), persistent=False
        )
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))

    def forward(self, timestep: Float[Tensor, " n"]) -> Float[Tensor, "n dim"]:
        """Embed timesteps 0 … T − 1."""
        angles = timestep[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))
