"""The Gaussian chain that a pipeline's scheduler runs, with what its network is shown at each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from specpolicy.speculative.process import ReverseProcess, X0Limit

from .refusal import PipelineRefused

_DETERMINISTIC = (
    "DDIMInverseScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
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
    """The scheduler's kind, if its steps are of the form a·x + b·x̂0 + σ·z.

    Args:
        takes_eta: whether the pipeline's call has an ``eta``.
        scales_input: whether the pipeline scales latents as the scheduler asks.

    Raises:
        PipelineRefused: they are not, or not in this pipeline.
    """
    name = type(scheduler).__name__
    kind = getattr(type(scheduler).step, "__qualname__", "").split(".")[0]
    if kind == "DDIMScheduler" and not takes_eta:
        raise PipelineRefused(
            f"this pipeline's call takes no eta, so that its {name} is deterministic: there is no noise to verify "
            f"drafts against. {_ADVICE}"
        )
    if kind == "EulerAncestralDiscreteScheduler" and not scales_input:
        raise PipelineRefused(
            f"this pipeline does not scale its latents, which {name} needs: the stock pipeline does not work with it "
            f"either. {_ADVICE}"
        )
    if kind in ("DDPMScheduler", "DDIMScheduler", "EulerAncestralDiscreteScheduler"):
        return kind
    if name in _DETERMINISTIC:
        raise PipelineRefused(f"{name} is deterministic: there is no noise to verify drafts against. {_ADVICE}")
    raise PipelineRefused(f"the steps of {name} are not known to be a·x + b·x0 + sigma·z. {_ADVICE}")


def read_chain(scheduler: Any, kind: str, eta: float, clipped_epsilon: bool) -> PipelineChain:
    """The chain of a scheduler whose timesteps have been set.

    Args:
        kind: of :func:`check_scheduler`.
        eta: of the pipeline's call; DDIM only.
        clipped_epsilon: DDIM only: whether ε is computed again from the limited x̂0 (``use_clipped_model_output``).

    Raises:
        PipelineRefused: η = 0, or a variance that the network is to predict.
    """
    if kind == "EulerAncestralDiscreteScheduler":
        return _euler_ancestral(scheduler)
    try:
        process = ReverseProcess.from_scheduler(scheduler, eta=eta)
    except ValueError as error:
        raise PipelineRefused(f"{error}") from error
    if clipped_epsilon:
        process = replace(process, unlimited=torch.zeros_like(process.unlimited))
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
        raise PipelineRefused(
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
        limit=X0Limit(),
        unlimited=torch.zeros_like(now),
    )
    return PipelineChain(process, scheduler.timesteps.cpu(), whole.rsqrt())
