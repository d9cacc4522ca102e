"""What a policy is taught."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from specpolicy.policies import DiffusionPolicy

from .chunks import Chunks
from .loop import Lesson
from .target import training_target


def policy_lesson(policy: DiffusionPolicy, train: Chunks, valid: Chunks) -> Lesson:
    """Denoise action chunks under their observations, at all of the scheduler's noise levels."""
    return Lesson(
        examples=len(train),
        loss=_Denoising(train.to(policy.device)),
        held_out=len(valid),
        validation=_Denoising(valid.to(policy.device)),
        save=lambda network, folder: network.save(folder),  # type: ignore[operator]
        identity={},
    )


class _Denoising:
    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks

    def __call__(self, network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's prediction; see :func:`training_target`."""
        assert isinstance(network, DiffusionPolicy)
        scheduler: DDPMScheduler = network.scheduler
        clean = network.action_normalizer.normalize(self.chunks.actions[index])
        noise = torch.randn(clean.shape, generator=generator).to(network.device)
        levels = scheduler.config.num_train_timesteps
        timestep = torch.randint(levels, (len(clean),), generator=generator).to(network.device)
        noisy = scheduler.add_noise(clean, noise, timestep)
        predicted = network(noisy, timestep, network.condition(self.chunks.observations[index]))
        return nn.functional.mse_loss(predicted.float(), training_target(scheduler, clean, noise, timestep))
