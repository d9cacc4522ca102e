"""Networks of other packages, mapped and compared with the same architecture built from torch's own modules."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from specpolicy.interop.network_weights import read_transformer, read_unet
from specpolicy.policies import CheckpointError
from specpolicy.policies.networks import build_network
from specpolicy.policies.networks.unet1d import ConditionalUnet1d

FILE = Path("somewhere.ckpt")
WIDTH, HEADS, HORIZON, ACTIONS, OBSERVED = 16, 2, 8, 3, 5


class Reference(nn.Module):
    """diffusion_policy's transformer as its paper and its configuration describe it: torch's layers, pre-norm, GELU."""

    def __init__(self, steps: int, layers: int, encoder_layers: int, causal: bool) -> None:
        super().__init__()
        common = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.0}
        self.input_emb, self.pos_emb = nn.Linear(ACTIONS, WIDTH), nn.Parameter(torch.randn(1, HORIZON, WIDTH))
        self.cond_pos_emb = nn.Parameter(torch.randn(1, 1 + steps, WIDTH))
        if steps:
            self.cond_obs_emb = nn.Linear(OBSERVED, WIDTH)
        if encoder_layers:
            self.encoder: nn.Module = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **common),
                encoder_layers,
                enable_nested_tensor=False,
            )
        else:
            self.encoder = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.Mish(), nn.Linear(4 * WIDTH, WIDTH))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 4 * WIDTH, **common), layers)
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, ACTIONS)
        if causal:
            rows, columns = torch.arange(HORIZON)[:, None], torch.arange(1 + steps)[None]
            self.register_buffer("mask", torch.where(rows >= rows.T, 0.0, float("-inf")))
            if steps:
                self.register_buffer("memory_mask", torch.where(rows >= columns - 1, 0.0, float("-inf")))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        half = WIDTH // 2
        angles = timestep[:, None] * torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
        told = torch.cat([angles.sin(), angles.cos()], dim=-1)[:, None]
        if cond is not None:
            told = torch.cat([told, self.cond_obs_emb(cond)], dim=1)
        memory = self.encoder(told + self.cond_pos_emb)
        hidden = self.decoder(
            self.input_emb(x) + self.pos_emb,
            memory,
            tgt_mask=getattr(self, "mask", None),
            memory_mask=getattr(self, "memory_mask", None),
        )
        return self.head(self.ln_f(hidden))


@pytest.mark.parametrize("encoder_layers", [0, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
@torch.no_grad()
def test_transformers(steps: int, causal: bool, encoder_layers: int) -> None:
    torch.manual_seed(0)
    reference = Reference(steps, 2, encoder_layers, causal).eval()
    read, horizon = read_transformer(FILE, "model.", reference.state_dict(), HEADS)
    assert horizon == HORIZON and read.cond_dim == steps * OBSERVED
    ours = build_network(read.config, ACTIONS, read.cond_dim, HORIZON).eval()
    ours.load_state_dict(read.weights)
    x, t, cond = torch.randn(4, HORIZON, ACTIONS), torch.tensor([0, 3, 50, 99]), torch.randn(4, steps, OBSERVED)
    expected = reference(x, t, cond if steps else None)
    torch.testing.assert_close(ours(x, t, cond.flatten(1)), expected, atol=2e-6, rtol=1e-5)


def _theirs(network: ConditionalUnet1d, bias_only: bool = False) -> dict[str, Tensor]:
    """Weights of a U-Net under robomimic's names."""
    state: dict[str, Tensor] = {}
    levels = len(network.down)
    for name, tensor in network.state_dict().items():
        head, _, rest = name.partition(".")
        if head == "timestep_embedding":
            name = rest.replace("mlp.0", "diffusion_step_encoder.1").replace("mlp.2", "diffusion_step_encoder.3")
        elif head in ("down", "up", "middle"):
            name = {"down": "down_modules", "up": "up_modules", "middle": "mid_modules"}[head] + "." + rest
            for ours, theirs in ((".first.", ".blocks.0.block."), (".second.", ".blocks.1.block."),
                                 (".film.", ".cond_encoder.1."), (".skip.", ".residual_conv.")):  # fmt: skip
                name = name.replace(ours, theirs)
            if bias_only and "cond_encoder" in name:
                tensor = tensor[len(tensor) // 2 :]
        elif head in ("downsample", "upsample"):
            number, _, part = rest.partition(".")
            name = f"{head.removesuffix('sample')}_modules.{number}.2.conv.{part}"
        else:
            name = name.replace("head.0.", "final_conv.0.block.").replace("head.1.", "final_conv.1.")
        state[name] = tensor
    assert levels > 1
    return state


@pytest.mark.parametrize("groups", [4, 8])
@torch.no_grad()
def test_unets(groups: int) -> None:
    """Groups are not in the weights; the head's are 8 in any case."""
    torch.manual_seed(1)
    network = ConditionalUnet1d(ACTIONS, 7, (8, 16, 24), 8, 3, groups, HORIZON, head_groups=8)
    read = read_unet(FILE, "model.", _theirs(network), groups, HORIZON)
    assert (read.action_dim, read.cond_dim) == (ACTIONS, 7)
    ours = build_network(read.config, ACTIONS, 7, HORIZON)
    ours.load_state_dict(read.weights)
    x, t, cond = torch.randn(3, HORIZON, ACTIONS), torch.tensor([0, 7, 99]), torch.randn(3, 7)
    torch.testing.assert_close(ours(x, t, cond), network(x, t, cond))


@torch.no_grad()
def test_a_bias_alone_is_a_scale_of_one() -> None:
    torch.manual_seed(2)
    network = ConditionalUnet1d(ACTIONS, 7, (8, 16), 8, 5, 8, HORIZON)
    for name, parameter in network.named_parameters():
        if ".film." in name:
            parameter[: len(parameter) // 2] = 1.0 if name.endswith("bias") else 0.0
    read = read_unet(FILE, "model.", _theirs(network, bias_only=True), 8, HORIZON)
    ours = build_network(read.config, ACTIONS, 7, HORIZON)
    ours.load_state_dict(read.weights)
    x, t, cond = torch.randn(3, HORIZON, ACTIONS), torch.tensor([0, 7, 99]), torch.randn(3, 7)
    torch.testing.assert_close(ours(x, t, cond), network(x, t, cond))


def test_groups_and_horizons_that_do_not_fit() -> None:
    state = _theirs(ConditionalUnet1d(ACTIONS, 7, (8, 16, 24), 8, 3, 4, HORIZON))
    with pytest.raises(CheckpointError, match="n_groups=5"):
        read_unet(FILE, "model.", state, 5, HORIZON)
    with pytest.raises(CheckpointError, match="horizon is 6"):
        read_unet(FILE, "model.", state, 4, 6)
    with pytest.raises(CheckpointError, match=r"model\.surplus"):
        read_unet(FILE, "model.", {**state, "surplus": torch.zeros(1)}, 4, HORIZON)
