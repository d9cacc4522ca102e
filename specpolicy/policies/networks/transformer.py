"""The time-series transformer of Diffusion Policy (Chi et al. 2023, section III-A and appendix).

Every action of the chunk is a token. It looks at the other actions, then at the timestep and the observation steps,
which are tokens too; positions are learned. Layers normalize first (Xiong et al. 2020), activations are GELU.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from specpolicy.policies.networks.embeddings import FourierFeatures, TimestepEmbedding

_SPREAD = 0.02  # of the initial weights, as in GPT-2 and Diffusion Policy


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values are at hand between projection and mixing.

    Args:
        width: features of a token. heads: must divide ``width``.
        dropout: share of the attention that is dropped in training.
        causal: queries see keys at their own position and before alone.
        ahead: keys that a causal query sees beyond its own position: those that stand before all others in a memory.
    """

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = False, ahead: int = 0) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal, self.ahead = heads, dropout, causal, ahead
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def split(self, projected: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n heads tokens part"]:
        """Give every head its part of the features."""
        return torch.unflatten(projected, 2, (self.heads, -1)).transpose(1, 2)

    def mix(
        self,
        query: Float[Tensor, "n heads asking part"],
        key: Float[Tensor, "n heads asked part"],
        value: Float[Tensor, "n heads asked part"],
    ) -> Float[Tensor, "n heads asking part"]:
        """Values, weighted by how well their keys answer the queries. Feature caching replaces this method."""
        dropout = self.dropout if self.training else 0.0
        mask = None
        if self.causal and self.ahead:
            positions = torch.arange(max(query.shape[2], key.shape[2]), device=query.device)
            mask = positions[: query.shape[2], None] >= positions[: key.shape[2]] - self.ahead
        return nn.functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=self.causal and not self.ahead and query.shape[2] > 1
        )

    def forward(
        self, x: Float[Tensor, "n asking width"], memory: Float[Tensor, "n asked width"] | None = None
    ) -> Float[Tensor, "n asking width"]:
        """Attend to ``memory``, or to ``x`` itself."""
        seen = x if memory is None else memory
        return self.attend(x, self.key(seen), self.value(seen))

    def attend(
        self,
        x: Float[Tensor, "n asking width"],
        key: Float[Tensor, "n asked width"],
        value: Float[Tensor, "n asked width"],
    ) -> Float[Tensor, "n asking width"]:
        """Attend to what is projected already."""
        mixed = self.mix(self.split(self.query(x)), self.split(key), self.split(value))
        return self.out(mixed.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Attention among actions, attention to the memory, two linear layers; each around a residual path."""

    def __init__(
        self, width: int, heads: int, expansion: int, dropout: float, causal: bool, memory_mask: bool = False
    ) -> None:
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_wide = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads, dropout, causal)
        # The timestep stands before the observation steps in the memory, hence one position more.
        self.cross = Attention(width, heads, dropout, memory_mask, ahead=1)
        self.widen, self.narrow = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "n tokens width"], memory: Float[Tensor, "n told width"]
    ) -> Float[Tensor, "n tokens width"]:
        """Apply the block to action tokens ``x`` under ``memory``. Only attention lets a token see others."""
        return self.forward_from(x, self.cross.key(memory), self.cross.value(memory))

    def forward_from(
        self,
        x: Float[Tensor, "n tokens width"],
        key: Float[Tensor, "n told width"],
        value: Float[Tensor, "n told width"],
    ) -> Float[Tensor, "n tokens width"]:
        """Compute :meth:`forward` from keys and values of the memory."""
        x = x + self.drop(self.attention(self.norm_self(x)))
        x = x + self.drop(self.cross.attend(self.norm_cross(x), key, value))
        return x + self.drop(self.narrow(nn.functional.gelu(self.widen(self.norm_wide(x)))))


class EncoderBlock(nn.Module):
    """Attention among the memory's tokens and two linear layers, each around a residual path."""

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm_self, self.norm_wide = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.widen, self.narrow = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "n told width"]) -> Float[Tensor, "n told width"]:
        """Apply the block."""
        x = x + self.drop(self.attention(self.norm_self(x)))
        return x + self.drop(self.narrow(nn.functional.gelu(self.widen(self.norm_wide(x)))))


class TransformerDenoiser(nn.Module):
    """A denoiser of action chunks of one fixed length, conditioned on a flat observation vector.

    Args:
        action_dim: coordinates of one action.
        cond_dim: length of the condition (all observation steps concatenated, then the prefix).
        horizon: actions in a chunk: tokens.
        observation_steps: observation steps that ``cond_dim`` consists of; a token each.
        width: features of a token. layers: blocks. heads: of each attention.
        expansion: hidden width of a block's linear layers as a multiple of ``width``.
        dropout: in training, within blocks and attention.
        causal: whether an action sees only those before it. Diffusion Policy does so for its transformer.
        octaves: sines and cosines of each observation coordinate that observations are widened by; see
            :class:`FourierFeatures`.
        timestep_mlp: whether an MLP follows the sines and cosines of the timestep; Diffusion Policy has none.
        memory_mask: whether action t sees observation steps up to t alone, as in Diffusion Policy's causal
            transformer. All actions see the timestep.
        encoder_layers: attention blocks among timestep and observation steps; 0 for an MLP on each of them.
        prefix_dim: last numbers of the condition, which are no observation: a linear map of them is added to the tokens
            of the observation steps, zero before training.

    Raises:
        ValueError: ``observation_steps`` does not divide ``cond_dim``, or ``heads`` not ``width``; no layers, or an odd
            width.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        horizon: int,
        observation_steps: int = 2,
        width: int = 192,
        layers: int = 6,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.1,
        causal: bool = False,
        octaves: int = 0,
        timestep_mlp: bool = True,
        memory_mask: bool = False,
        encoder_layers: int = 0,
        prefix_dim: int = 0,
    ) -> None:
        super().__init__()
        cond_dim -= prefix_dim
        if observation_steps < 0 or (cond_dim % observation_steps if observation_steps else cond_dim):
            raise ValueError(
                f"a condition of length {cond_dim} does not divide into observation_steps={observation_steps}; give "
                "the policy's n_obs_steps"
            )
        if layers < 1 or width < 4 or width % 2 or width % heads:
            raise ValueError(f"layers={layers}, width={width}, heads={heads}: at least one layer, and an even width "
                             "of 4 or more that heads divide")  # fmt: skip
        self.shape, self.observation_steps = (horizon, action_dim), observation_steps
        self.timestep_embedding = TimestepEmbedding(width, timestep_mlp)
        self.octaves = FourierFeatures(octaves)
        if observation_steps:
            self.enter_observation = nn.Linear(self.octaves.width(cond_dim // observation_steps), width)
        elif prefix_dim:
            raise ValueError("a transformer without observation steps takes no prefix (max_delay)")
        self.enter_action = nn.Linear(action_dim, width)
        self.memory_position = nn.Parameter(torch.zeros(1, 1 + observation_steps, width))
        self.action_position = nn.Parameter(torch.zeros(1, horizon, width))
        self.memory = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        if encoder_layers:
            self.memory = nn.Sequential(*(EncoderBlock(width, heads, 4, dropout) for _ in range(encoder_layers)))
        self.blocks = nn.ModuleList(
            DecoderBlock(width, heads, expansion, dropout, causal, memory_mask) for _ in range(layers)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))
        self.apply(_begin)
        self.prefix_dim = prefix_dim
        if prefix_dim:
            self.enter_prefix = nn.Linear(prefix_dim, width, bias=False)
            nn.init.zeros_(self.enter_prefix.weight)
        for position in (self.memory_position, self.action_position):
            nn.init.normal_(position, std=_SPREAD)

    def forward(
        self,
        x: Float[Tensor, "n time action"],
        timestep: Num[Tensor, " n"],
        cond: Float[Tensor, "n cond"],
    ) -> Float[Tensor, "n time action"]:
        """Predict ε (or x0, or v: whatever the training target was) at noisy chunks ``x``."""
        told = self.timestep_embedding(timestep.to(x.dtype))[:, None]
        if self.observation_steps:
            told = torch.cat([told, self._observed(cond)], dim=1)
        return self._denoise(x, self.memory(told + self.memory_position))

    def timestep_table(self, timesteps: Num[Tensor, " n"]) -> Float[Tensor, "n features"]:
        """Compute the timestep's part of the memory; see :class:`SeparableNetwork`."""
        told = self.timestep_embedding(timesteps.to(self.timestep_embedding.frequencies.dtype))[:, None]
        return self._separated(told + self.memory_position[:, :1])

    def condition(self, cond: Float[Tensor, "b cond"]) -> Float[Tensor, "b features"]:
        """Compute the observations' part of the memory; see :class:`SeparableNetwork`."""
        if not self.observation_steps:
            return cond.new_zeros((len(cond), 0))
        return self._separated(self._observed(cond) + self.memory_position[:, 1:])

    def forward_from(
        self, x: Float[Tensor, "n time action"], t_rows: Float[Tensor, "n told"], c_rows: Float[Tensor, "n observed"]
    ) -> Float[Tensor, "n time action"]:
        """Compute :meth:`forward` from rows of the two tables: tokens of the memory, or their keys and values."""
        parts = (1 if self.encoded else 2 * len(self.blocks), -1, self.action_position.shape[-1])
        memory = torch.unflatten(t_rows, 1, parts)  # no length of a batch: what traces this would keep it
        if self.observation_steps:
            memory = torch.cat([memory, torch.unflatten(c_rows, 1, parts)], dim=2)
        if self.encoded:
            return self._denoise(x, self.memory(memory[:, 0]))
        return self._denoise(x, memory)

    @property
    def encoded(self) -> bool:
        """Whether the memory's tokens see one another: then only what stands before that can be computed ahead."""
        return isinstance(self.memory[0], EncoderBlock)

    def _observed(self, cond: Float[Tensor, "b cond"]) -> Float[Tensor, "b steps width"]:
        seen = cond[:, : cond.shape[1] - self.prefix_dim]
        steps = seen.reshape(cond.shape[0], self.observation_steps, -1)
        tokens: Tensor = self.enter_observation(self.octaves(steps))
        return tokens + self.enter_prefix(cond[:, seen.shape[1] :])[:, None] if self.prefix_dim else tokens

    def _separated(self, tokens: Float[Tensor, "b some width"]) -> Float[Tensor, "b features"]:
        """Keys and values of all blocks for some tokens of the memory; the tokens themselves if they are encoded."""
        if self.encoded:
            return tokens.flatten(1)
        told = self.memory(tokens)
        crossing: list[Any] = [block.cross for block in self.blocks]
        layers = [layer for each in crossing for layer in (each.key, each.value)]
        return torch.stack([layer(told) for layer in layers], dim=1).flatten(1)

    def _denoise(
        self,
        x: Float[Tensor, "n time action"],
        memory: Float[Tensor, "n told width"] | Float[Tensor, "n kv told width"],
    ) -> Float[Tensor, "n time action"]:
        """Apply the blocks under a memory, or under the keys and values that they make of it."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"chunks of shape {tuple(x.shape[1:])}; this network was built for {self.shape}")
        hidden = self.enter_action(x) + self.action_position
        for place, block in enumerate(self.blocks):
            if memory.ndim == 3:
                hidden = block(hidden, memory)
            else:
                hidden = block.forward_from(hidden, memory[:, 2 * place], memory[:, 2 * place + 1])  # type: ignore[operator]
        return self.leave(hidden)


def _begin(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=_SPREAD)
        nn.init.zeros_(module.bias)
