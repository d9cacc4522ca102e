"""The Gaussian chain that a pipeline's scheduler runs, with what its network is shown at each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from specpolicy.speculative.denoiser import Cond
from specpolicy.speculative.process import ReverseProcess, per_row
from specpolicy.speculative.schedulers import X0Thresholding


class UnsupportedPipeline(ValueError):
    """A pipeline, its scheduler or its network does not fit; the message says why and what to use instead."""


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
            UnsupportedPipeline: the network answers with others.
        """
        of_state, of_output = network.config.in_channels, network.config.out_channels
        if of_output == of_state or (self.drops_variance and of_output == 2 * of_state):
            return int(of_state)
        raise UnsupportedPipeline(
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
        UnsupportedPipeline: its denoising loop is not known.
    """
    call = type(pipeline).__call__
    loop = getattr(call, "__qualname__", "").split(".")[0]
    if loop not in FAMILIES or not call.__module__.startswith("diffusers."):
        raise UnsupportedPipeline(
            f"{type(pipeline).__name__} runs a denoising loop that is not known here; these can be accelerated: "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[loop]


Forward = Callable[..., Any]
"""The network's own forward: states, timesteps, and conditions by name."""


class Conditions:
    """The keyword arguments with which a pipeline asks its network, told apart into rows and constants.

    Args:
        given: as the pipeline hands them over, for ``branches`` × ``batch`` rows, one branch after the other.
    """

    def __init__(self, given: Mapping[str, Any], branches: int, batch: int) -> None:
        self.given, self.branches, self.batch = dict(given), branches, batch

    @property
    def rows(self) -> dict[str, Any]:
        """Tensors that belong to chains, with leading dimensions ``(batch, branches)``; None in place of the others."""
        return {name: _walk(value, self._split) for name, value in self.given.items() if name not in _CONSTANT}

    def of(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """What to ask the network with, when the rows are ``rows``, of leading dimensions ``(n, branches)``."""
        return {name: _merge(value, rows[name]) if name in rows else value for name, value in self.given.items()}

    def same(self, given: Mapping[str, Any]) -> bool:
        """Whether these are the very same objects again."""
        return self.given.keys() == given.keys() and all(_same(value, given[key]) for key, value in self.given.items())

    def _split(self, value: Any) -> Tensor | None:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != self.branches * self.batch:
            return None
        return value.view(self.branches, self.batch, *value.shape[1:]).transpose(0, 1)


_CONSTANT = ("cross_attention_kwargs", "return_dict")  # settings and masks, the same for every row


class GuidedPrediction:
    """The denoiser that a pipeline's chain is sampled with.

    Args:
        forward: the network's own. channels: of a state; the network may answer with more, which are left out.
        chain: of the pipeline's scheduler. guidance: how branches are combined. conditions: of the pipeline's batch.

    Attributes:
        answer, guided: of the first pass: what the network said, as it came, and the prediction made of it.
    """

    def __init__(
        self, forward: Forward, channels: int, chain: PipelineChain, guidance: Guidance, conditions: Conditions
    ) -> None:
        self.forward, self.channels = forward, channels
        self.chain, self.guidance, self.conditions = chain, guidance, conditions
        self.answer: Any = None
        self.guided: Tensor | None = None

    def __call__(
        self, x: Float[Tensor, "n c h w"], timestep: Int[Tensor, " n"], cond: Cond
    ) -> Float[Tensor, "n c h w"]:
        """One network pass over ``branches`` × n rows; ``timestep`` is the position in the chain."""
        at, branches = timestep.cpu(), self.guidance.branches
        shown = x * per_row(self.chain.input_scale[at].to(x.device, x.dtype), x)
        told = self.chain.timesteps[at].to(x.device).repeat(branches)
        answer = self.forward(shown.repeat(branches, *[1] * (x.ndim - 1)), told, **self.conditions.of(cond))
        output = answer[0][:, : self.channels].contiguous()
        guided = self.guidance(output.view(branches, len(x), *output.shape[1:]))
        if self.answer is None:
            self.answer, self.guided = answer, guided
        return guided


def _walk(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(part, change) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_walk(part, change) for part in value]
    return change(value)


def _merge(given: Any, rows: Any) -> Any:
    """``given`` with each tensor for which there are rows replaced by them, one branch after the other."""
    if isinstance(given, Mapping):
        return {key: _merge(part, rows[key]) for key, part in given.items()}
    if isinstance(given, tuple | list):
        return type(given)(_merge(part, row) for part, row in zip(given, rows, strict=True))
    return rows.transpose(0, 1).flatten(0, 1) if isinstance(rows, Tensor) else given


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(part, second[key]) for key, part in first.items())
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return first is second
    return bool(first == second)


_DETERMINISTIC = (
    "DDIMInverseScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "KDPM2DiscreteScheduler",
)
_ADVICE = (
    "DDPMScheduler, DDIMScheduler with eta > 0 and EulerAncestralDiscreteScheduler fit: "
    "pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)"
)


@dataclass(frozen=True)
class PipelineChain:
    """A scheduler's chain.

    Attributes:
        process: its ``timesteps`` are the positions 0 … K − 1, since a scheduler's own need be neither whole numbers
            nor all different.
        timesteps: what the network is told at each position, shape ``(K,)``.
        input_scale: what the state is multiplied by before the network sees it, shape ``(K,)``.
    """

    process: ReverseProcess
    timesteps: Num[Tensor, " k"]
    input_scale: Float[Tensor, " k"]


def check_scheduler(scheduler: Any, takes_eta: bool, scales_input: bool) -> str:
    """Check that a scheduler's steps are of the form a·x + b·x̂0 + σ·z.

    Args:
        scheduler: of the pipeline.
        takes_eta: whether the pipeline's call has an ``eta``.
        scales_input: whether the pipeline scales latents as the scheduler asks.

    Returns:
        Its kind: the class of diffusers whose ``step`` it runs.

    Raises:
        UnsupportedPipeline: they are not, or not in this pipeline.
    """
    name = type(scheduler).__name__
    kind = getattr(type(scheduler).step, "__qualname__", "").split(".")[0]
    if kind == "DDIMScheduler" and not takes_eta:
        raise UnsupportedPipeline(
            f"this pipeline's call takes no eta, so that its {name} is deterministic: there is no noise to verify "
            f"drafts against. {_ADVICE}"
        )
    if kind == "EulerAncestralDiscreteScheduler" and not scales_input:
        raise UnsupportedPipeline(
            f"this pipeline does not scale its latents, which {name} needs: the stock pipeline does not work with it "
            f"either. {_ADVICE}"
        )
    if kind in ("DDPMScheduler", "DDIMScheduler", "EulerAncestralDiscreteScheduler"):
        return kind
    if kind.startswith("FlowMatch"):
        raise UnsupportedPipeline(
            f"{name} integrates a flow-matching model, which is no chain of Gaussian steps; speculation needs a model "
            "trained with a DDPM noise schedule"
        )
    algorithm = str(scheduler.config.get("algorithm_type", ""))
    if algorithm.startswith("sde"):
        raise UnsupportedPipeline(
            f"{name} with algorithm_type={algorithm!r} draws noise, but its steps use earlier predictions and are not "
            f"of the form a·x + b·x0 + sigma·z. {_ADVICE}"
        )
    if kind in _DETERMINISTIC:
        raise UnsupportedPipeline(f"{name} is deterministic: there is no noise to verify drafts against. {_ADVICE}")
    raise UnsupportedPipeline(f"the steps of {name} are not known to be a·x + b·x0 + sigma·z. {_ADVICE}")


def read_chain(scheduler: Any, kind: str, eta: float, clipped_epsilon: bool) -> PipelineChain:
    """Read the chain of a scheduler whose timesteps have been set.

    Args:
        scheduler: of the pipeline.
        kind: of :func:`check_scheduler`.
        eta: of the pipeline's call; DDIM only.
        clipped_epsilon: DDIM only: whether ε is computed again from the limited x̂0 (``use_clipped_model_output``).

    Raises:
        UnsupportedPipeline: the scheduler has no chain that can be read, see :meth:`ReverseProcess.from_scheduler`.
    """
    try:
        if kind == "EulerAncestralDiscreteScheduler":
            return _euler_ancestral(scheduler)
        process = ReverseProcess.from_scheduler(scheduler, eta=eta, use_clipped_model_output=clipped_epsilon)
    except ValueError as error:
        raise UnsupportedPipeline(f"{error}") from error
    return PipelineChain(
        replace(process, timesteps=torch.arange(process.num_steps)),
        process.timesteps,
        torch.ones(process.num_steps, dtype=torch.float64),
    )


def _euler_ancestral(scheduler: Any) -> PipelineChain:
    """Ancestral Euler steps (Karras et al. 2022 and k-diffusion), on states of variance 1 + σ²: it is linear in them.

    x' = x + (σ_down − σ)(x − x̂0)/σ + σ_up z, hence a = σ_down/σ and b = 1 − a.
    """
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UnsupportedPipeline(
            f"prediction_type={scheduler.config.prediction_type!r} with {type(scheduler).__name__}; the scheduler "
            "itself takes 'epsilon' and 'v_prediction' only"
        )
    sigmas = scheduler.sigmas.cpu().double()
    now, then = sigmas[:-1], sigmas[1:]
    up = then * ((now**2 - then**2).clamp(min=0)).sqrt() / now
    down = (then**2 - up**2).clamp(min=0).sqrt()
    a, whole = down / now, 1 + now**2
    epsilon = scheduler.config.prediction_type == "epsilon"
    process = ReverseProcess(
        timesteps=torch.arange(len(now)),
        a=a,
        b=1 - a,
        sigma=up,
        from_state=torch.ones_like(now) if epsilon else 1 / whole,
        from_output=-now if epsilon else -now / whole.sqrt(),
        thresholding=X0Thresholding(),
    )
    return PipelineChain(process, scheduler.timesteps.cpu(), whole.rsqrt())
