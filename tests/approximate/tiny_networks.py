"""Transformers of a few thousand random weights, one of each family, with a question to ask them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from torch import Tensor, nn

from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.transformer import TransformerDenoiser

SIDE = 8
"""Patches of an image along each side."""


@dataclass(frozen=True)
class Asked:
    """A network, a batch of states for it, and how to ask it about them at a scheduler's time."""

    network: nn.Module
    x: Tensor
    ask: Callable[[Tensor, float], Tensor]


def _wide(network: nn.Module, factor: float = 4.0) -> nn.Module:
    """Weights large enough that tokens notice one another, and norms that are not all alike."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            parameter.data = factor * parameter.shape[1] ** -0.5 * torch.randn(parameter.shape, generator=generator) / 2
    return network.eval()


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def policy_network(batch: int = 2, causal: bool = False) -> Asked:
    torch.manual_seed(0)
    network = _wide(TransformerDenoiser(3, 10, 16, width=16, layers=3, heads=2, causal=causal))
    cond = _noise(batch, 10, seed=2)
    return Asked(network, _noise(batch, 16, 3), lambda x, t: network(x, torch.full((len(x),), t), cond[: len(x)]))


def dit(batch: int = 2) -> Asked:
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=3, norm_num_groups=2,
        sample_size=2 * SIDE, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    labels = torch.arange(batch)

    def ask(x: Tensor, time: float) -> Tensor:
        return network(x, timestep=torch.full((len(x),), time), class_labels=labels).sample

    return Asked(_wide(network, 2.0), _noise(batch, 2, 2 * SIDE, 2 * SIDE), ask)


def sd3(batch: int = 2, dual: bool = False) -> Asked:
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=2 * SIDE, patch_size=2, in_channels=2, out_channels=2, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6,
        pos_embed_max_size=2 * SIDE, dual_attention_layers=(0, 1) if dual else (), qk_norm="rms_norm" if dual else None,
    )  # fmt: skip
    prompt, pooled = _noise(batch, 5, 12, seed=3), _noise(batch, 6, seed=4)

    def ask(x: Tensor, time: float) -> Tensor:
        when = torch.full((len(x),), time)
        return network(hidden_states=x, timestep=when, encoder_hidden_states=prompt, pooled_projections=pooled).sample

    return Asked(_wide(network, 2.0), _noise(batch, 2, 2 * SIDE, 2 * SIDE), ask)


def flux(batch: int = 2, single: int = 2) -> Asked:
    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=single, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    assert isinstance(network.pos_embed, FluxPosEmbed)
    prompt, pooled = _noise(batch, 5, 12, seed=3), _noise(batch, 6, seed=4)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    places = torch.stack([torch.zeros(SIDE * SIDE), rows.flatten(), columns.flatten()], 1)

    def ask(x: Tensor, time: float) -> Tensor:
        when = torch.full((len(x),), time / 1000)
        return network(
            hidden_states=x, timestep=when, encoder_hidden_states=prompt, pooled_projections=pooled,
            txt_ids=torch.zeros(5, 3), img_ids=places,
        ).sample  # fmt: skip

    return Asked(_wide(network, 2.0), _noise(batch, SIDE * SIDE, 4), ask)


NETWORKS: dict[str, Callable[[], Asked]] = {
    "policy": policy_network,
    "causal policy": lambda: policy_network(causal=True),
    "dit": dit,
    "sd3": sd3,
    "sd3.5": lambda: sd3(dual=True),
    "flux": flux,
    "flux without single blocks": lambda: flux(single=0),
}


def policy(network: str = "transformer", **changes: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 2, "heads": 2} if network == "transformer" else {}
    made = DiffusionPolicy(
        PolicyConfig(
            task="square",
            observations={"object": 5},
            action_dim=3,
            network={"name": network, **shape, **changes},
            scheduler={"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True},
        )
    ).eval()
    _wide(made.network)
    return made


def scheduler(**changes: Any) -> DDPMScheduler:
    return DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", **changes)
