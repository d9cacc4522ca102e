"""A residual MLP over the whole action chunk, for machines where the U-Net's convolutions are too slow.

Every weight is used once a row, so one row costs little more than reading the weights, and further rows cost less than
the first: on a CPU this is the network whose batched verification is cheap. Residual MLPs with layer norm as
denoisers of actions: Hansen-Estruch et al. 2023 (IDQL), Ren et al. 2024 (DPPO).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from specpolicy.policies.networks.embeddings import FourierFeatures, TimestepEmbedding


class AdaLNBlock(nn.Module):
    """Layer norm, scale and shift from the condition, two linear layers, all around a residual path."""

    def __init__(self, width: int, expansion: int, embed: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(embed, 2 * width)
        self.widen = nn.Linear(width, expansion * width)
        self.narrow = nn.Linear(expansion * width, width)

    def forward(self, x: Float[Tensor, "n width"], cond: Float[Tensor, "n embed"]) -> Float[Tensor, "n width"]:
        """Apply the block to features ``x``, modulated by ``cond``."""
        scale, shift = self.film(cond).chunk(2, dim=-1)
        hidden = torch.addcmul(self.norm(x) + shift, self.norm(x), scale)
        return x + self.narrow(nn.functional.mish(self.widen(hidden)))


class ResidualMlp(nn.Module):
    """A denoiser of action chunks of one fixed length, conditioned on a flat observation vector.

    Args:
        action_dim: coordinates of one action.
        cond_dim: length of the observation vector (all observation steps concatenated).
        horizon: actions in a chunk.
        width: features of the residual path.
        blocks: residual blocks.
        expansion: hidden width of a block as a multiple of ``width``.
        embed: length of the vector that carries timestep and observation into every block.
        timestep_dim: size of the timestep embedding.
        octaves: sines and cosines of each observation coordinate that the condition is widened by; see
            :class:`FourierFeatures`.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        horizon: int,
        width: int = 512,
        blocks: int = 3,
        expansion: int = 2,
        embed: int = 256,
        timestep_dim: int = 64,
        octaves: int = 0,
    ) -> None:
        super().__init__()
        self.shape = (horizon, action_dim)
        self.timestep_embedding = TimestepEmbedding(timestep_dim)
        self.octaves = FourierFeatures(octaves)
        self.embed = nn.Sequential(
            nn.Linear(timestep_dim + self.octaves.width(cond_dim), embed), nn.Mish(), nn.Linear(embed, embed), nn.Mish()
        )
        self.enter = nn.Linear(horizon * action_dim + cond_dim, width)
        self.blocks = nn.ModuleList(AdaLNBlock(width, expansion, embed) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Mish(), nn.Linear(width, horizon * action_dim))

    def forward(
        self,
        x: Float[Tensor, "n time action"],
        timestep: Num[Tensor, " n"],
        cond: Float[Tensor, "n cond"],
    ) -> Float[Tensor, "n time action"]:
        """Predict ε (or x0, or v: whatever the training target was) at noisy chunks ``x``."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"chunks of shape {tuple(x.shape[1:])}; this network was built for {self.shape}")
        told = torch.cat([self.timestep_embedding(timestep.to(x.dtype)), self.octaves(cond)], dim=-1)
        embedded = self.embed(told)
        hidden = self.enter(torch.cat([x.flatten(1), cond], dim=-1))
        for block in self.blocks:
            hidden = block(hidden, embedded)
        return self.leave(hidden).unflatten(1, self.shape)
