"""What an image network is taught."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from specpolicy.training.loop import Lesson, Save
from specpolicy.training.target import training_target

from .idx import LabelledImages


def image_lesson(
    scheduler: DDPMScheduler,
    train: LabelledImages,
    held_out: LabelledImages,
    device: torch.device | str,
    save: Save,
    identity: dict[str, Any],
    teacher: nn.Module | None = None,
) -> Lesson:
    """Denoise images at all of the scheduler's noise levels, or predict what a teacher predicts there.

    The levels of a batch are spread evenly over the chain from one random offset (Kingma et al. 2021, appendix I.1),
    which takes some of the noise out of the gradient. So does a ``teacher`` (Hinton et al. 2015), which answers with a
    mean where the data hold single draws; the losses, the validation's too, are then distances from its answers. It is
    given the classes if it takes any.
    """
    return Lesson(
        examples=len(train),
        loss=_Denoising(scheduler, train, device, teacher),
        held_out=len(held_out),
        validation=_Denoising(scheduler, held_out, device, teacher),
        save=save,
        identity=identity,
    )


class _Denoising:
    def __init__(
        self,
        scheduler: DDPMScheduler,
        images: LabelledImages,
        device: torch.device | str,
        teacher: nn.Module | None,
    ) -> None:
        self.scheduler, self.images, self.device, self.teacher = scheduler, images, device, teacher

    def __call__(self, network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's prediction; see :func:`training_target`."""
        labels = self.images.labels[index].to(self.device)
        clean = scaled(self.images.pixels[index]).to(self.device)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        levels = self.scheduler.config.num_train_timesteps
        spread = (torch.rand(1, generator=generator) + torch.arange(len(index)) / len(index)) % 1.0
        timestep = (spread * levels).long().clamp(max=levels - 1).to(self.device)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        if self.teacher is None:
            target = training_target(self.scheduler, clean, noise, timestep)
        else:
            with torch.no_grad():
                target = predict(self.teacher, noisy, timestep, labels).float()
        return nn.functional.mse_loss(predict(network, noisy, timestep, labels).float(), target)


def scaled(pixels: Tensor) -> Float[Tensor, "n 1 height width"]:
    """Bytes as the network sees them: one channel, in [−1, 1]."""
    return pixels[:, None].float() / 127.5 - 1.0


def predict(network: nn.Module, noisy: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
    """What a network answers; it is told the class of each image if it wants it."""
    given = {"class_labels": labels} if isinstance(network, DiTTransformer2DModel) else {}
    return network(noisy, timestep, **given, return_dict=False)[0]
