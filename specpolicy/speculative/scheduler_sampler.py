"""Any diffusers scheduler behind the samplers' call."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, call_denoiser, prepared
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler_call import Noise, check_call
from specpolicy.speculative.schedulers import check_first_step, check_step, check_steppable, set_timesteps
from specpolicy.utils.checks import check_integer


class SchedulerError(RuntimeError):
    """A scheduler's step is not finite although state and network output are."""


class SchedulerSampler:
    """Steps a diffusers scheduler (DDIM, DPM-Solver++, Euler, …) through ``scheduler.step``, one evaluation at a time.

    It has whatever distribution the scheduler has: few-step samplers do *not* have that of the training chain, hence
    ``exact = False``.

    Args:
        scheduler: of diffusers; copied for each call, because multistep solvers keep a history.
        num_inference_steps: steps, and network evaluations for schedulers of first order.
        step_arguments: further arguments of ``scheduler.step``, such as ``{"eta": 0.0}``.

    Raises:
        ValueError: the scheduler is none, is a flow-matching one, whose networks predict another quantity and whose
            noise levels are no timesteps, does not step from noise to a sample all the way, takes no such number of
            steps, or wants more at each step than the network's output and ``step_arguments``.
    """

    exact: bool = False

    def __init__(self, scheduler: Any, num_inference_steps: int, step_arguments: dict[str, Any] | None = None) -> None:
        steps = check_integer("num_inference_steps", num_inference_steps)
        self.scheduler = copy.deepcopy(check_steppable(scheduler))
        set_timesteps(self.scheduler, steps)
        self.num_inference_steps = steps
        self.step_arguments = dict(step_arguments or {})
        self._takes_generator = "generator" in check_step(self.scheduler, self.step_arguments)
        check_first_step(self.scheduler, self.step_arguments)

    def __repr__(self) -> str:
        """Name the scheduler."""
        return f"SchedulerSampler({type(self.scheduler).__name__}, {self.num_inference_steps} steps)"

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``, scaled as the scheduler wants it; see :class:`Sampler`.

        Not every scheduler has an x̂0: with ``record``, ``x0`` stays None.

        Raises:
            SchedulerError: the scheduler made NaN or infinity of finite numbers.
        """
        random = check_call(noise, cond, generator)
        cond = prepared(denoiser, cond)
        scheduler = copy.deepcopy(self.scheduler)
        arguments = dict(self.step_arguments)
        if self._takes_generator and generator is not None:
            arguments["generator"] = random.shared if random.generators is None else random.generators
        states = [x := noise * scheduler.init_noise_sigma]
        for t in scheduler.timesteps:
            rows: Int[Tensor, " b"] = torch.full((len(x),), t.item(), device=x.device, dtype=t.dtype)
            output = call_denoiser(denoiser, scheduler.scale_model_input(x, t), rows, cond)
            x = scheduler.step(output, t, x, **arguments).prev_sample
            if not torch.isfinite(x).all():
                raise SchedulerError(
                    f"{type(scheduler).__name__}.step made NaN or infinity of finite numbers at timestep {t.item()}: "
                    "its settings leave this step undefined. Check its betas, variance_type, rescale_betas_zero_snr "
                    "and eta"
                )
            states.append(x)
        count = torch.full((len(x),), len(scheduler.timesteps), dtype=torch.long)
        return SampleResult(
            sample=x, passes=count, evaluations=count.clone(), trajectory=torch.stack(states) if record else None
        )
