"""A class-conditional transformer in pixel space, as a diffusers pipeline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from diffusers import DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn

NO_CLASS = 1000
"""How ``DiTPipeline`` asks for no class at all: ImageNet has 1000, and the embedding one more."""


class PixelDiTPipeline(DiTPipeline):  # type: ignore[misc]
    """``DiTPipeline`` without an autoencoder: the transformer's states are the images, in [−1, 1].

    The denoising loop, guidance included, is diffusers' own, so that speculation and caching take it for what it is.
    Loop and folder have no autoencoder's weights: where the loop decodes, it gets its argument back. Guidance asks for
    class 1000 where no class is meant; the transformer is told its own number for that.

    Args:
        transformer: for images of ``sample_size`` with ``in_channels``; it may have been taught any number of classes,
            its last embedding without one (diffusers' label dropout).
        scheduler: the noise levels.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: DDPMScheduler) -> None:
        super(DiTPipeline, self).__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.labels: dict[str, int] = {}
        transformer.register_forward_pre_hook(_own_number_for_no_class, with_kwargs=True)

    @property
    def vae(self) -> Any:
        """What the inherited loop calls to decode; the identity."""
        return SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0), decode=_unchanged)


def _unchanged(states: Tensor) -> SimpleNamespace:
    return SimpleNamespace(sample=states)


def _own_number_for_no_class(network: nn.Module, args: Any, given: dict[str, Any]) -> None:
    # in place, since speculation knows the conditions of a call by being the same objects at every step
    labels = given.get("class_labels")
    if isinstance(labels, Tensor) and isinstance(network, DiTTransformer2DModel):
        labels.masked_fill_(labels == NO_CLASS, network.config.num_embeds_ada_norm)
