"""A policy of which everything is known: Gaussian actions whose mean follows the observation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from hydra.utils import instantiate
from torch import Tensor

from specpolicy import ReverseProcess, SequentialSampler
from specpolicy.calibration.calibrate import ObservationSet
from specpolicy.calibration.fit import RecordedChains
from specpolicy.config import compose
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy

SCHEDULER = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}


@dataclass
class GaussianTarget:
    """Denoiser of N(mean(cond), U diag(s²) Uᵀ): x̂0 is linear in x, with Jacobian J_k = U diag(slope_k) Uᵀ."""

    basis: Tensor
    spread: Tensor
    follow: Tensor

    def __call__(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        alpha = DDPMScheduler(**SCHEDULER).alphas_cumprod.to(x.dtype)[timestep][:, None]
        basis = self.basis.to(x.dtype)
        mean = torch.tanh(2 * cond) @ self.follow.to(x.dtype).T
        away = (x - alpha.sqrt() * mean) @ basis
        x0 = mean + (away * self.slope(alpha)) @ basis.T
        return (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()

    def slope(self, alpha: Tensor) -> Tensor:
        """dx̂0/dx along each column of the basis."""
        variance = self.spread.to(alpha.dtype) ** 2
        return alpha.sqrt() * variance / (alpha * variance + 1 - alpha)


def gaussian(dim: int = 4, numbers: int = 2) -> GaussianTarget:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    return GaussianTarget(basis, torch.logspace(0, -1, dim), torch.randn(dim, numbers, generator=generator))


def process_of(steps: int) -> ReverseProcess:
    return ReverseProcess.from_scheduler(DDPMScheduler(**SCHEDULER), steps)


def recorded(target: GaussianTarget, steps: int, count: int, seed: int = 0) -> RecordedChains:
    """Chains at random conditions, every ten of them alike."""
    generator = torch.Generator().manual_seed(seed)
    dim, numbers = target.follow.shape
    group = torch.arange(count) // 10
    centres = torch.randn(count // 10 + 1, numbers, generator=generator)
    cond = centres[group] + 0.05 * torch.randn(count, numbers, generator=generator)
    noise = torch.randn(count, dim, generator=generator)
    result = SequentialSampler(process_of(steps))(target, noise, cond=cond, generator=generator, record=True)
    assert result.trajectory is not None and result.x0 is not None
    return RecordedChains(result.trajectory, result.x0, cond, group)


def save_untrained(folder: Path) -> DiffusionPolicy:
    """A small policy of a task that only these tests know."""
    torch.manual_seed(0)
    config = PolicyConfig(
        task="reach",
        observations={"position": 2, "goal": 2},
        action_dim=2,
        network={"name": "unet1d", "channels": [8], "timestep_dim": 8},
        scheduler=dict(SCHEDULER),
    )
    DiffusionPolicy(config).save_pretrained(folder)
    return DiffusionPolicy.from_pretrained(folder)


def histories(count: int = 30) -> ObservationSet:
    rng = np.random.default_rng(0)
    return ObservationSet(
        rng.normal(size=(count, 2, 4)).astype(np.float32), np.arange(count) // 3, {"kind": "fake", "file": "none"}
    )


def sampler_of(name: str, policy: DiffusionPolicy, *overrides: str) -> Any:
    """The sampler that a configuration names, for this policy."""
    return instantiate(compose("rollout", [f"sampler={name}", *overrides]).sampler)(policy)
