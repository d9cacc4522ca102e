"""From a policy's training scheduler to a sampler: the recipes that ``configs/sampler`` names.

Each takes the ``DDPMScheduler`` that the policy was trained with, so that one configuration serves every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler

from .speculative import ReverseProcess, SchedulerSampler, SequentialSampler, SpeculativeSampler
from .speculative.drafters import Drafter
from .speculative.verifiers import Verifier
from .speculative.window import Window

Recipe = Callable[[DDPMScheduler], Any]
"""Makes a sampler from the training scheduler."""


def sequential(scheduler: DDPMScheduler, num_inference_steps: int) -> SequentialSampler:
    """The DDPM chain of ``num_inference_steps`` steps, one network pass each."""
    return SequentialSampler(ReverseProcess.from_scheduler(scheduler, num_inference_steps))


def speculative(
    scheduler: DDPMScheduler, num_inference_steps: int, drafter: Drafter, verifier: Verifier, window: Window
) -> SpeculativeSampler:
    """The same chain in rounds; exactly its law if the verifier is exact."""
    process = ReverseProcess.from_scheduler(scheduler, num_inference_steps)
    return SpeculativeSampler(process, drafter, verifier, window)


def ddim(scheduler: DDPMScheduler, num_inference_steps: int, eta: float = 0.0) -> SchedulerSampler:
    """Few-step DDIM (Song et al. 2021). Approximate: not the law of the training chain."""
    few = DDIMScheduler.from_config(scheduler.config)
    return SchedulerSampler(few, num_inference_steps, {"eta": eta})
