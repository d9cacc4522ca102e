"""The FiLM-conditioned 1-D U-Net of Diffusion Policy (Chi et al. 2023, section III-A).

Convolutions run over the time axis of the action chunk; the observation and the diffusion timestep enter every
residual block as a scale and a shift per channel (FiLM, Perez et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from specpolicy.policies.networks.embeddings import TimestepEmbedding


def conv_block(channels_in: int, channels_out: int, kernel: int, groups: int) -> nn.Sequential:
    """Convolution, group norm, Mish."""
    return nn.Sequential(
        nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2),
        nn.GroupNorm(groups, channels_out),
        nn.Mish(),
    )


class FilmResidualBlock(nn.Module):
    """Two convolution blocks with a FiLM layer between them and a residual path around them."""

    def __init__(self, channels_in: int, channels_out: int, cond_dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = conv_block(channels_in, channels_out, kernel, groups)
        self.film = nn.Linear(cond_dim, 2 * channels_out)
        self.second = conv_block(channels_out, channels_out, kernel, groups)
        self.skip = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Float[Tensor, "n c t"], film: Float[Tensor, "n d2"]) -> Float[Tensor, "n d t"]:
        """Apply the block to features ``x`` over time; ``film`` is what its FiLM layer made of the condition."""
        scale, shift = film.unsqueeze(-1).chunk(2, dim=1)
        hidden = self.first(x)
        # Diffusion Policy multiplies by the scale itself, without adding one.
        return self.second(torch.addcmul(shift, scale, hidden)) + self.skip(x)


class FilmLevel(nn.ModuleList):
    """Residual blocks in a row: one level of the U-Net."""

    def forward(self, x: Float[Tensor, "n c t"], films: Iterator[Tensor]) -> Float[Tensor, "n d t"]:
        """Apply all blocks, each with the next of ``films``."""
        for block in self:
            x = block(x, next(films))
        return x


class ConditionalUnet1d(nn.Module):
    """A denoiser of action chunks, conditioned on a flat observation vector.

    Args:
        action_dim: coordinates of one action.
        cond_dim: length of the condition (all observation steps concatenated, then the prefix).
        channels: channels per level; the chunk's length must be divisible by ``2 ** (len(channels) - 1)``.
            Diffusion Policy's state policies use ``(256, 512, 1024)`` (65.9 M parameters on Square).
        timestep_dim: size of the timestep embedding.
        kernel: width of the convolutions.
        groups: groups of the group norms; must divide every entry of ``channels``.
        head_groups: groups of the group norm in the head; None for ``groups``. Diffusion Policy always has 8 there.
        horizon: actions in a chunk; None if it is not known yet: chunks of any fitting length are taken.
        prefix_dim: last numbers of the condition, which are no observation; treated as any others.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        channels: Sequence[int] = (64, 128, 256),
        timestep_dim: int = 64,
        kernel: int = 5,
        groups: int = 8,
        horizon: int | None = None,
        head_groups: int | None = None,
        prefix_dim: int = 0,
    ) -> None:
        super().__init__()
        wrong = [c for c in channels if c % groups]
        if wrong or not channels:
            raise ValueError(f"channels={tuple(channels)}: every level must be a positive multiple of groups={groups}")
        self.length_multiple = 2 ** (len(channels) - 1)
        if horizon is not None:
            self._check_length(horizon)
        self.timestep_embedding = TimestepEmbedding(timestep_dim)
        embed = timestep_dim + cond_dim

        def pair(channels_in: int, channels_out: int) -> FilmLevel:
            return FilmLevel(
                FilmResidualBlock(c, channels_out, embed, kernel, groups) for c in (channels_in, channels_out)
            )

        widths = [action_dim, *channels]
        self.down = nn.ModuleList(pair(i, o) for i, o in pairwise(widths))
        self.downsample = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = pair(channels[-1], channels[-1])
        self.up = nn.ModuleList(pair(2 * o, i) for i, o in reversed(list(pairwise(channels))))
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) for c in reversed(channels[:-1]))
        self.head = nn.Sequential(
            conv_block(channels[0], channels[0], kernel, head_groups or groups), nn.Conv1d(channels[0], action_dim, 1)
        )

    def _check_length(self, length: int) -> None:
        if length % self.length_multiple:
            raise ValueError(f"chunk length {length} is not divisible by {self.length_multiple}")

    def forward(
        self,
        x: Float[Tensor, "n time action"],
        timestep: Num[Tensor, " n"],
        cond: Float[Tensor, "n cond"],
    ) -> Float[Tensor, "n time action"]:
        """Predict ε (or x0, or v: whatever the training target was) at noisy chunks ``x``."""
        # Mish belongs to the conditioning path of every block; all blocks share it, so it is applied once.
        told = nn.functional.mish(torch.cat([self.timestep_embedding(timestep.to(x.dtype)), cond], dim=-1))
        return self._denoise(x, [layer(told) for layer in self._film_layers()])

    def timestep_table(self, timesteps: Num[Tensor, " n"]) -> Float[Tensor, "n film"]:
        """Compute what the FiLM layers of all blocks make of timesteps; see :class:`SeparableNetwork`."""
        embedded = self.timestep_embedding(timesteps.to(self.timestep_embedding.frequencies.dtype))
        told, dim = nn.functional.mish(embedded), embedded.shape[1]
        linear = nn.functional.linear
        return torch.cat([linear(told, layer.weight[:, :dim], layer.bias) for layer in self._film_layers()], dim=1)

    def condition(self, cond: Float[Tensor, "b cond"]) -> Float[Tensor, "b film"]:
        """Compute what the FiLM layers of all blocks make of observations; see :class:`SeparableNetwork`."""
        told, dim = nn.functional.mish(cond), cond.shape[1]
        linear, layers = nn.functional.linear, self._film_layers()
        return torch.cat([linear(told, layer.weight[:, layer.in_features - dim :]) for layer in layers], dim=1)

    def forward_from(
        self, x: Float[Tensor, "n time action"], t_rows: Float[Tensor, "n film"], c_rows: Float[Tensor, "n film"]
    ) -> Float[Tensor, "n time action"]:
        """Compute :meth:`forward` from rows of the two tables: FiLM is linear in mish([t, o]), so they add up."""
        return self._denoise(
            x, torch.split(t_rows + c_rows, [layer.out_features for layer in self._film_layers()], dim=1)
        )

    def _film_layers(self) -> list[nn.Linear]:
        """The FiLM layers of all blocks, in the order of their use."""
        levels = [*self.down, self.middle, *self.up]
        return [block.film for level in levels for block in level]

    def _denoise(self, x: Float[Tensor, "n time action"], films: Sequence[Tensor]) -> Float[Tensor, "n time action"]:
        """Everything but the condition: ``films`` holds scales and shifts of each block."""
        self._check_length(x.shape[1])
        film = iter(films)
        hidden = x.transpose(1, 2)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            hidden = blocks(hidden, film)
            skips.append(hidden)
            if level < len(self.downsample):
                hidden = self.downsample[level](hidden)
        hidden = self.middle(hidden, film)
        # As in the original, the skip of the finest level stays unused: the head follows the last upsampling.
        for blocks, upsample in zip(self.up, self.upsample, strict=True):
            hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = upsample(blocks(hidden, film))
        return self.head(hidden).transpose(1, 2)
