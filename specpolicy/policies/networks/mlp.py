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
        cond_dim: length of the condition (all observation steps concatenated, then the prefix).
        horizon: actions in a chunk.
        width: features of the residual path.
        blocks: residual blocks.
        expansion: hidden width of a block as a multiple of ``width``.
        embed: length of the vector that carries timestep and observation into every block.
        timestep_dim: size of the timestep embedding.
        octaves: sines and cosines of each observation coordinate that the condition is widened by; see
            :class:`FourierFeatures`.
        prefix_dim: last numbers of the condition, which are no observation and are not widened.
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
        prefix_dim: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.prefix_dim = (horizon, action_dim), prefix_dim
        self.timestep_embedding = TimestepEmbedding(timestep_dim)
        self.octaves = FourierFeatures(octaves)
        self.embed = nn.Sequential(
            nn.Linear(timestep_dim + self.octaves.width(cond_dim - prefix_dim) + prefix_dim, embed),
            nn.Mish(),
            nn.Linear(embed, embed),
            nn.Mish(),
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
        self._check_shape(x)
        told = torch.cat([self.timestep_embedding(timestep.to(x.dtype)), self._widened(cond)], dim=-1)
        return self._denoise(self.enter(torch.cat([x.flatten(1), cond], dim=-1)), self.embed(told))

    def timestep_table(self, timesteps: Num[Tensor, " n"]) -> Float[Tensor, "n embed"]:
        """Compute what the embedding's first layer makes of timesteps; see :class:`SeparableNetwork`."""
        embedded = self.timestep_embedding(timesteps.to(self.timestep_embedding.frequencies.dtype))
        weight, bias = self._embed_layer.weight, self._embed_layer.bias
        return nn.functional.linear(embedded, weight[:, : embedded.shape[1]], bias)

    def condition(self, cond: Float[Tensor, "b cond"]) -> Float[Tensor, "b features"]:
        """Compute what embedding and entry layer make of observations; see :class:`SeparableNetwork`."""
        widened, layer = self._widened(cond), self._embed_layer
        told, chunk = layer.in_features - widened.shape[1], self.enter.in_features - cond.shape[1]
        embedded = nn.functional.linear(widened, layer.weight[:, told:])
        entered = nn.functional.linear(cond, self.enter.weight[:, chunk:], self.enter.bias)
        return torch.cat([embedded, entered], dim=1)

    def forward_from(
        self, x: Float[Tensor, "n time action"], t_rows: Float[Tensor, "n embed"], c_rows: Float[Tensor, "n features"]
    ) -> Float[Tensor, "n time action"]:
        """Compute :meth:`forward` from rows of the two tables: both first layers are linear, so they add up."""
        self._check_shape(x)
        embedded, entered = torch.split(c_rows, [t_rows.shape[1], self.enter.out_features], dim=1)
        chunk = x.flatten(1)
        hidden = torch.addmm(entered, chunk, self.enter.weight[:, : chunk.shape[1]].t())
        return self._denoise(hidden, self.embed[1:](t_rows + embedded))

    def _widened(self, cond: Float[Tensor, "b cond"]) -> Float[Tensor, "b wide"]:
        if not self.prefix_dim:
            return self.octaves(cond)
        observed, prefix = torch.split(cond, [cond.shape[1] - self.prefix_dim, self.prefix_dim], dim=1)
        return torch.cat([self.octaves(observed), prefix], dim=1)

    @property
    def _embed_layer(self) -> nn.Linear:
        layer = self.embed[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def _check_shape(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"chunks of shape {tuple(x.shape[1:])}; this network was built for {self.shape}")

    def _denoise(
        self, hidden: Float[Tensor, "n width"], embedded: Float[Tensor, "n embed"]
    ) -> Float[Tensor, "n time action"]:
        """Everything behind the entry layer."""
        for block in self.blocks:
            hidden = block(hidden, embedded)
        return self.leave(hidden).unflatten(1, self.shape)
