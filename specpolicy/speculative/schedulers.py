"""Reading the Gaussian chain off diffusers schedulers, by their configuration: this module imports no diffusers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from specpolicy.speculative.process import ReverseProcess, X0Thresholding

# Below this a standard deviation is lost in float32 beside a sample of unit scale: diffusers' variance floor of 1e-20
# at a last step above t = 0 is such a case, and counts as no noise.
_NO_NOISE = 1e-9


def read_scheduler(
    scheduler: Any, num_inference_steps: int | None, timesteps: list[int] | None, eta: float
) -> ReverseProcess:
    """See :meth:`ReverseProcess.from_scheduler`."""
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    scheduler = copy.deepcopy(scheduler)
    if "DDPMScheduler" in names:
        _set_timesteps(scheduler, num_inference_steps, timesteps)
        return _read_ddpm(scheduler)
    if "DDIMScheduler" in names:
        if timesteps is not None:
            raise ValueError("DDIMScheduler takes no custom timesteps; give num_inference_steps, or use DDPMScheduler")
        if not eta > 0:
            raise ValueError(
                f"DDIM with eta={eta} is deterministic: there is no Gaussian kernel to verify. Pass eta > 0, use "
                "DDPMScheduler for an exact speculative sampler, or SchedulerSampler to run DDIM as it is"
            )
        _set_timesteps(scheduler, num_inference_steps, None)
        return _read_ddim(scheduler, eta)
    raise ValueError(
        f"{type(scheduler).__name__} has no known Gaussian kernel a·x + b·x0 + sigma·z; speculation covers "
        "DDPMScheduler and DDIMScheduler(eta > 0). SchedulerSampler runs any other scheduler one step at a time"
    )


def read_deterministic(scheduler: Any, num_inference_steps: int | None) -> ReverseProcess:
    """See :meth:`ReverseProcess.deterministic`."""
    if "DDIMScheduler" not in {cls.__name__ for cls in type(scheduler).__mro__}:
        raise ValueError(f"{type(scheduler).__name__} is not read as a deterministic chain; DDIMScheduler is")
    scheduler = copy.deepcopy(scheduler)
    _set_timesteps(scheduler, num_inference_steps, None)
    return _read_ddim(scheduler, 0.0)


def _set_timesteps(scheduler: Any, num_inference_steps: int | None, timesteps: list[int] | None) -> None:
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps}; it must be at least 1")
    if timesteps is not None:
        scheduler.set_timesteps(timesteps=timesteps)
    elif num_inference_steps is not None:
        scheduler.set_timesteps(num_inference_steps)


def _limit(config: Any) -> X0Thresholding:
    if config.thresholding:
        return X0Thresholding(quantile=config.dynamic_thresholding_ratio, ceiling=config.sample_max_value)
    return X0Thresholding(clip=config.clip_sample_range if config.clip_sample else None)


def _prediction(kind: str, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """(from_state, from_output) of each prediction type; v as in Salimans & Ho 2022, section 4."""
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if kind == "epsilon":
        return 1 / signal, -noise / signal
    if kind == "sample":
        return torch.zeros_like(signal), torch.ones_like(signal)
    if kind == "v_prediction":
        return signal, -noise
    raise ValueError(f"prediction_type={kind!r} is not supported; expected 'epsilon', 'sample' or 'v_prediction'")


def _read_ddpm(scheduler: Any) -> ReverseProcess:
    """Ho et al. 2020, equations 6 and 7, for any falling list of timesteps."""
    config = scheduler.config
    t = scheduler.timesteps.cpu().long()
    alpha_bars = scheduler.alphas_cumprod.cpu().double()
    now = alpha_bars[t]
    before = torch.cat([alpha_bars[t[1:]], torch.ones(1, dtype=torch.float64)])
    alpha = now / before
    beta = 1 - alpha
    posterior = ((1 - before) / (1 - now) * beta).clamp(min=1e-20)
    if config.variance_type in ("fixed_small", "fixed_small_log"):
        sigma = posterior.sqrt()
    elif config.variance_type == "fixed_large":
        sigma = beta.sqrt()
    else:
        raise ValueError(
            f"variance_type={config.variance_type!r}: the noise must not depend on the network. Use a scheduler with "
            "variance_type='fixed_small' or 'fixed_large' and drop the network's variance channels"
        )
    sigma = torch.where((t > 0) & (sigma > _NO_NOISE), sigma, 0.0)  # diffusers adds no noise at t = 0
    from_state, from_output = _prediction(config.prediction_type, now)
    return ReverseProcess(
        timesteps=t,
        a=alpha.sqrt() * (1 - before) / (1 - now),
        b=before.sqrt() * beta / (1 - now),
        sigma=sigma,
        from_state=from_state,
        from_output=from_output,
        limit=_limit(config),
        unlimited=torch.zeros_like(sigma),
    )


def _read_ddim(scheduler: Any, eta: float) -> ReverseProcess:
    """Song et al. 2021, equations 12 and 16, with diffusers' fixed stride between timesteps."""
    config = scheduler.config
    if scheduler.num_inference_steps is None:
        raise ValueError("the DDIMScheduler has no timesteps yet; pass num_inference_steps")
    t = scheduler.timesteps.cpu().long()
    alpha_bars = scheduler.alphas_cumprod.cpu().double()
    previous = t - config.num_train_timesteps // scheduler.num_inference_steps
    final = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    now, before = alpha_bars[t], torch.where(previous >= 0, alpha_bars[previous.clamp(min=0)], final)
    sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)).clamp(min=0).sqrt()
    direction = 1 - before - sigma**2
    if (direction < -1e-12).any():
        raise ValueError(f"eta={eta} is too large: it adds more noise than a step removes; use 0 < eta <= 1")
    a = direction.clamp(min=0).sqrt() / (1 - now).sqrt()
    b = before.sqrt() - a * now.sqrt()
    from_state, from_output = _prediction(config.prediction_type, now)
    return ReverseProcess(
        timesteps=t,
        a=a,
        b=b,
        sigma=torch.where(sigma > _NO_NOISE, sigma, 0.0),
        from_state=from_state,
        from_output=from_output,
        limit=_limit(config),
        # mean = √ᾱ' limit(x̂0) + √(1 − ᾱ' − σ²) ε with ε from the x̂0 before the limit; solved for one effective x̂0
        unlimited=-a * now.sqrt() / b,
    )
