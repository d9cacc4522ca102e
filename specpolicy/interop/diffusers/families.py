"""What has to be known of each kind of pipeline: which network it asks, and how it guides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .refusal import PipelineRefused

Arguments = Mapping[str, Any]
"""The arguments of one call of a pipeline, by name, defaults included."""


@dataclass(frozen=True)
class Guidance:
    """How the branches of a network's batch become one prediction (Ho & Salimans 2022).

    Attributes:
        branches: 1 without guidance; 2 with it, and the network's batch holds one branch after the other.
        conditional: which branch has the condition.
        scale: weight w in u + w (c − u).
        rescale: share of the guided prediction that is brought back to the spread of the conditional one (Lin et al.
            2023, section 3.4).
    """

    branches: int = 1
    conditional: int = 0
    scale: float = 1.0
    rescale: float = 0.0

    def __call__(self, output: Float[Tensor, "g n c h w"]) -> Float[Tensor, "n c h w"]:
        """Combine what the network said about ``n`` states in each branch."""
        if self.branches == 1:
            return output[0]
        given, free = output[self.conditional], output[1 - self.conditional]
        guided = free + self.scale * (given - free)
        if self.rescale > 0:
            dims = tuple(range(1, guided.ndim))
            spread = given.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
            guided = guided * (self.rescale * spread + (1 - self.rescale))
        return guided


def _unguided(pipeline: Any, arguments: Arguments) -> Guidance:
    return Guidance()


def _class_labels(pipeline: Any, arguments: Arguments) -> Guidance:
    scale = arguments["guidance_scale"]
    return Guidance(2, conditional=0, scale=scale) if scale > 1 else Guidance()


def _text(pipeline: Any, arguments: Arguments) -> Guidance:
    scale = arguments["guidance_scale"]
    return Guidance(2, conditional=1, scale=scale) if scale != 1 else Guidance()


def _stable_diffusion(pipeline: Any, arguments: Arguments) -> Guidance:
    # asked of the pipeline, not of the arguments: a callback may change them on the way
    if not pipeline.do_classifier_free_guidance:
        return Guidance()
    return Guidance(2, conditional=1, scale=pipeline.guidance_scale, rescale=pipeline.guidance_rescale)


@dataclass(frozen=True)
class Family:
    """One kind of pipeline.

    Attributes:
        network: name of the component that predicts.
        guidance: reads the guidance of a call, as it is now, off pipeline and arguments.
        scales_input: whether the pipeline scales latents as its scheduler asks.
        drops_variance: whether the pipeline itself leaves a learned variance out, so that it plays no part.
    """

    network: str
    guidance: Callable[[Any, Arguments], Guidance] = _unguided
    scales_input: bool = True
    drops_variance: bool = False

    def channels(self, network: Any) -> int:
        """Channels of a prediction: those of the state.

        Raises:
            PipelineRefused: the network answers with others.
        """
        of_state, of_output = network.config.in_channels, network.config.out_channels
        if of_output == of_state or (self.drops_variance and of_output == 2 * of_state):
            return int(of_state)
        raise PipelineRefused(
            f"the network answers {of_state} channels with {of_output}. If the others are a learned variance: the "
            "noise of a step must not depend on the network, or drafts cannot be verified. Use a network that predicts "
            "the mean alone, with variance_type='fixed_small' or 'fixed_large'"
        )


FAMILIES: dict[str, Family] = {
    "DDPMPipeline": Family("unet", scales_input=False),
    "DDIMPipeline": Family("unet", scales_input=False),
    "LDMPipeline": Family("unet"),
    "DiTPipeline": Family("transformer", _class_labels, drops_variance=True),
    "LDMTextToImagePipeline": Family("unet", _text, scales_input=False),
    "StableDiffusionPipeline": Family("unet", _stable_diffusion),
}
"""The pipelines that can be accelerated, by the class whose ``__call__`` they run."""


def family_of(pipeline: Any) -> Family:
    """The family of a pipeline.

    Raises:
        PipelineRefused: its denoising loop is not known.
    """
    call = type(pipeline).__call__
    loop = getattr(call, "__qualname__", "").split(".")[0]
    if loop not in FAMILIES or not call.__module__.startswith("diffusers."):
        raise PipelineRefused(
            f"{type(pipeline).__name__} runs a denoising loop that is not known here; these can be accelerated: "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[loop]
