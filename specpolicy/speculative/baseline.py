"""Any diffusers scheduler, run the ordinary way behind the samplers' call."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .denoiser import Cond, Denoiser, call_denoiser, check_cond
from .result import SampleResult


class SchedulerSampler:
    """Steps a diffusers scheduler (DDIM, DPM-Solver++, Euler, …) through ``scheduler.step``, one pass at a time.

    It samples whatever law the scheduler has: few-step samplers do *not* have the law of the training chain, hence
    ``exact = False``.

    Args:
        scheduler: copied for each call, because multistep solvers keep a history.
        num_inference_steps: steps, and network passes for schedulers of first order.
        step_arguments: further arguments of ``scheduler.step``, such as ``{"eta": 0.0}``.
    """

    exact: bool = False

    def __init__(self, scheduler: Any, num_inference_steps: int, step_arguments: dict[str, Any] | None = None) -> None:
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps}; it must be at least 1")
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.set_timesteps(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.step_arguments = dict(step_arguments or {})
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters

    def __repr__(self) -> str:
        return f"SchedulerSampler({type(self.scheduler).__name__}, {self.num_inference_steps} steps)"

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        record: bool = False,
    ) -> SampleResult:
        """Sample as :class:`SequentialSampler` does.

        ``record`` keeps the trajectory; ``x0`` stays None, since not every scheduler has one.

        Raises:
            DenoiserError: the denoiser returned NaN, infinity or another shape.
        """
        check_cond(cond, len(noise))
        scheduler = copy.deepcopy(self.scheduler)
        arguments = dict(self.step_arguments)
        if self._takes_generator and generator is not None:
            single = isinstance(generator, torch.Generator)
            arguments["generator"] = generator if single else list(generator)  # type: ignore[arg-type]
        x, states = noise * scheduler.init_noise_sigma, []
        states.append(x)
        for t in scheduler.timesteps:
            rows = torch.full((len(x),), t.item(), device=x.device, dtype=t.dtype)
            output = call_denoiser(denoiser, scheduler.scale_model_input(x, t), rows, cond)
            x = scheduler.step(output, t, x, **arguments).prev_sample
            states.append(x)
        count = torch.full((len(x),), len(scheduler.timesteps), dtype=torch.long)
        return SampleResult(
            sample=x, passes=count, evaluations=count.clone(), trajectory=torch.stack(states) if record else None
        )
