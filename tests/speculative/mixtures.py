"""Gaussian mixtures, whose denoiser is known in closed form: a target that no training error blurs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from specpolicy import ReverseProcess


@dataclass
class Mixture:
    """Equal-weight Gaussians at ``means`` (m, d) with standard deviation ``scale``, seen through a noise schedule."""

    means: Tensor
    scale: float
    alpha_bars: Tensor
    prediction: str = "epsilon"

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor | None = None) -> Tensor:
        x_in, x = x, x.double().flatten(1)
        alpha = self.alpha_bars[timestep][:, None]
        means = self.means.double() if cond is None else self.means.double() + cond.double()[:, None, :1]
        variance = alpha * self.scale**2 + 1 - alpha
        away = x[:, None] - alpha.sqrt()[..., None] * means
        weight = (-away.square().sum(-1) / 2 / variance).softmax(1)
        centre = means + (alpha.sqrt() * self.scale**2 / variance)[..., None] * away
        x0 = (weight[..., None] * centre).sum(1)
        eps = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        output = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": alpha.sqrt() * eps - (1 - alpha).sqrt() * x0,
        }[self.prediction]
        return output.view_as(x_in).to(x_in.dtype)


def ddpm(steps: int, **config: object) -> tuple[DDPMScheduler, ReverseProcess]:
    """The schedule that diffusion policies use, without clipping unless asked for."""
    settings = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False} | config
    scheduler = DDPMScheduler(100, **settings)
    return scheduler, ReverseProcess.from_scheduler(scheduler, steps)


def mixture(scheduler: DDPMScheduler, dim: int, modes: int = 4, scale: float = 0.05) -> Mixture:
    """``modes`` Gaussians at random places of [−1, 1]^dim."""
    means = torch.rand(modes, dim, generator=torch.Generator().manual_seed(7)) * 2 - 1
    return Mixture(means, scale, scheduler.alphas_cumprod.double(), scheduler.config.prediction_type)


def chains(batch: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, torch.Generator]:
    """Initial noise and a generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, generator=generator, dtype=dtype), generator
