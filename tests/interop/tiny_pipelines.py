"""Whole pipelines with networks of a few hundred random weights, in the formats that diffusers saves and loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

SMALL: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (4,), "norm_num_groups": 2}


def ddpm_scheduler(**changes: Any) -> DDPMScheduler:
    """A network's direct x̂0 is calm even if its weights are random, so that drafts are accepted."""
    settings = {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
    return DDPMScheduler(100, **(settings | changes))


def unet(channels: int = 1, size: int = 4, **changes: Any) -> UNet2DModel:
    torch.manual_seed(0)
    network = UNet2DModel(
        size,
        **(
            {"in_channels": channels, "out_channels": channels, "add_attention": False}
            | SMALL
            | {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
            | changes
        ),
    )
    return network.eval()


def vae(channels: int = 2) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(latent_channels=channels, **SMALL).eval()


def ddpm(**changes: Any) -> DDPMPipeline:
    return quiet(DDPMPipeline(unet(**changes), ddpm_scheduler()))


def ddim() -> DDIMPipeline:
    return quiet(DDIMPipeline(unet(), DDIMScheduler.from_config(ddpm_scheduler().config)))


def ldm() -> LDMPipeline:
    return quiet(LDMPipeline(vae(), unet(2), DDIMScheduler.from_config(ddpm_scheduler().config)))


def dit(learned_sigma: bool = True) -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=2,
        out_channels=4 if learned_sigma else 2,
        num_layers=1,
        norm_num_groups=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return quiet(DiTPipeline(transformer.eval(), vae(), ddpm_scheduler()))


def stable_diffusion() -> Any:
    """Without text encoder and tokenizer: calls hand in prompt_embeds of width 8."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        8,
        in_channels=2,
        out_channels=2,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=8,
        attention_head_dim=2,
        **SMALL,
    )
    scheduler = ddpm_scheduler(steps_offset=1)
    return quiet(
        StableDiffusionPipeline(vae(), None, None, network.eval(), scheduler, None, None, requires_safety_checker=False)
    )


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reloaded(pipeline: Any, folder: Path) -> Any:
    """Saved and loaded again, as a user's pipeline would be."""
    pipeline.save_pretrained(folder)
    return quiet(type(pipeline).from_pretrained(folder))


def seeded(*seeds: int) -> Any:
    """One generator, or a list for several seeds."""
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made if len(made) > 1 else made[0]
