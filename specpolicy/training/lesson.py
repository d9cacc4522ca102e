"""What a policy is taught."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from specpolicy.policies import DiffusionPolicy
from specpolicy.policies.digest import checkpoint_digest

from .chunks import Chunks
from .loop import Lesson
from .target import training_target


def policy_lesson(
    policy: DiffusionPolicy, train: Chunks, valid: Chunks, teacher: DiffusionPolicy | None = None
) -> Lesson:
    """Denoise action chunks under their observations, at all noise levels, or predict what a teacher predicts there.

    A ``teacher`` (Hinton et al. 2015) answers with a mean where demonstrations hold single draws, which takes noise out
    of the gradient. It must scale as the policy does.

    Raises:
        ValueError: the teacher is of no checkpoint, by which a resumed training would know it again.
    """
    if teacher is not None and teacher.folder is None:
        raise ValueError("the teacher was not loaded from a checkpoint: save it first, and load it from there")
    return Lesson(
        examples=len(train),
        loss=_Denoising(train.to(policy.device), teacher),
        held_out=len(valid),
        validation=_Denoising(valid.to(policy.device), teacher),
        save=lambda network, folder: network.save(folder),  # type: ignore[operator]
        identity={} if teacher is None or teacher.folder is None else {"teacher": checkpoint_digest(teacher.folder)},
    )


class _Denoising:
    def __init__(self, chunks: Chunks, teacher: DiffusionPolicy | None) -> None:
        self.chunks, self.teacher = chunks, teacher

    def __call__(self, network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's prediction; see :func:`training_target`."""
        assert isinstance(network, DiffusionPolicy)
        scheduler: DDPMScheduler = network.scheduler
        clean = network.action_normalizer.normalize(self.chunks.actions[index])
        noise = torch.randn(clean.shape, generator=generator).to(network.device)
        levels = scheduler.config.num_train_timesteps
        timestep = torch.randint(levels, (len(clean),), generator=generator).to(network.device)
        noisy = scheduler.add_noise(clean, noise, timestep)
        cond = network.condition(self.chunks.observations[index])
        predicted = network(noisy, timestep, cond)
        if self.teacher is None:
            target = training_target(scheduler, clean, noise, timestep)
        else:
            with torch.no_grad():
                target = self.teacher(noisy, timestep, cond).float()
        return nn.functional.mse_loss(predicted.float(), target)
