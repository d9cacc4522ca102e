"""Reading the Gaussian chain off diffusers schedulers, by their configuration: this module imports no diffusers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import index
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from specpolicy.utils.checks import check_integer, check_number, shown
from specpolicy.utils.errors import one_line

# Below this a standard deviation is lost in float32 beside a sample of unit scale: diffusers' variance floor of 1e-20
# at a last step above t = 0 is such a case, and counts as no noise.
_NO_NOISE = 1e-9
# b of a step between equal noise levels is 0 but for rounding; levels that differ in float32 have 1e-8 and more.
_EQUAL_LEVELS = 1e-12


@dataclass(frozen=True)
class X0Thresholding:
    """What a scheduler does to x̂0 before it is used.

    Attributes:
        clip: clamp to [−clip, clip]; None leaves it alone.
        quantile: dynamic thresholding at this quantile of |x̂0| instead (Saharia et al. 2022, section 2.3).
        ceiling: upper bound of the dynamic threshold.
    """

    clip: float | None = None
    quantile: float | None = None
    ceiling: float = 1.0

    def __call__(self, x0: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Limit x̂0."""
        if self.quantile is not None:
            sizes = x0.abs().flatten(1).to(torch.promote_types(x0.dtype, torch.float32))
            size = torch.quantile(sizes, self.quantile, dim=1)
            bound = size.clamp(min=1.0).clamp(max=self.ceiling).to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
            return torch.minimum(torch.maximum(x0, -bound), bound) / bound
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)


def read_scheduler(
    scheduler: Any,
    num_inference_steps: int | None,
    timesteps: list[int] | None,
    eta: float,
    use_clipped_model_output: bool,
) -> dict[str, Any]:
    """Return the fields of a :class:`ReverseProcess`; see its ``from_scheduler``."""
    if _is(scheduler, "DDPMScheduler"):
        return _read_ddpm(_set(scheduler, num_inference_steps, timesteps))
    if _is(scheduler, "DDIMScheduler"):
        if timesteps is not None:
            raise ValueError("DDIMScheduler takes no custom timesteps; give num_inference_steps, or use DDPMScheduler")
        if check_number("eta", eta) == 0:
            raise ValueError(
                f"DDIM with eta={eta} is deterministic: there is no Gaussian kernel to verify. Pass eta > 0, use "
                "DDPMScheduler for an exact speculative sampler, or SchedulerSampler to run DDIM as it is"
            )
        if eta < 0:
            raise ValueError(f"eta={eta}; expected a number above 0 and at most 1")
        return _read_ddim(_set(scheduler, num_inference_steps, None), eta, use_clipped_model_output)
    raise ValueError(
        f"{type(scheduler).__name__} has no known Gaussian kernel a·x + b·x0 + sigma·z; speculation covers "
        "DDPMScheduler and DDIMScheduler(eta > 0). SchedulerSampler runs any other scheduler one step at a time"
    )


def read_deterministic(scheduler: Any, num_inference_steps: int | None) -> dict[str, Any]:
    """Return the fields of a :class:`ReverseProcess`; see its ``deterministic``."""
    if not _is(scheduler, "DDIMScheduler"):
        raise ValueError(f"{type(scheduler).__name__} is not read as a deterministic chain; DDIMScheduler is")
    return _read_ddim(_set(scheduler, num_inference_steps, None), 0.0, False)


def set_timesteps(scheduler: Any, num_inference_steps: Any) -> None:
    """Set a scheduler to so many steps, and check that they are in its noise schedule.

    Args:
        scheduler: of any class; changed. Timesteps of classes other than DDPM's and DDIM's are not looked at.
        num_inference_steps: K.

    Raises:
        ValueError: K is no whole number, below 1, or more than there are timesteps; or the settings lead to timesteps
            outside the noise schedule.
    """
    steps = check_integer("num_inference_steps", num_inference_steps)
    if _indexes_schedule(scheduler):
        times = scheduler.config.num_train_timesteps
        if steps > times:
            raise ValueError(
                f"num_inference_steps={steps} is more than num_train_timesteps={times} of the "
                f"{type(scheduler).__name__}; take at most {times} steps"
            )
    scheduler.set_timesteps(steps)
    if _indexes_schedule(scheduler):
        _check_timesteps(scheduler)


def _set(scheduler: Any, num_inference_steps: int | None, timesteps: list[int] | None) -> Any:
    """A copy of the scheduler with its timesteps set and checked."""
    scheduler = copy.copy(scheduler)  # whose timesteps are replaced, not changed
    if timesteps is not None:
        if num_inference_steps is not None:
            raise ValueError("both num_inference_steps and timesteps are given; give one of them")
        scheduler.set_timesteps(timesteps=_custom(timesteps, scheduler.config.num_train_timesteps))
    elif num_inference_steps is not None:
        set_timesteps(scheduler, num_inference_steps)
    _check_timesteps(scheduler)
    return scheduler


def _custom(timesteps: Any, times: int) -> list[int]:
    """Check timesteps that were given one by one; numpy's and torch's numbers are taken, 40.5 is not."""
    try:
        whole = [-1 if isinstance(each, bool) else index(each) for each in timesteps]
    except TypeError:
        whole = []
    if not whole or any(later >= earlier for earlier, later in pairwise(whole)) or whole[0] >= times or whole[-1] < 0:
        raise ValueError(
            f"timesteps={shown(timesteps)}; expected a list of whole numbers that falls, from at most "
            f"num_train_timesteps - 1 = {times - 1} to at least 0"
        )
    return whole


def _check_timesteps(scheduler: Any) -> None:
    """Raise ``ValueError`` unless the scheduler's timesteps fall and are in its noise schedule."""
    config, t, known = scheduler.config, scheduler.timesteps.cpu(), len(scheduler.alphas_cumprod)
    first, last = int(t.max()), int(t.min())
    if first >= known or last < 0:
        spacing, offset = getattr(config, "timestep_spacing", "leading"), getattr(config, "steps_offset", 0)
        if first >= known and known < config.num_train_timesteps:
            advice = f"trained_betas has {known} entries, set num_train_timesteps={known} or give one beta for each"
        elif offset:
            advice = "set steps_offset=0, or take fewer steps"
        else:
            advice = "its rounding is at fault, take one step more or fewer, or timestep_spacing='leading'"
        raise ValueError(
            f"{type(scheduler).__name__} with timestep_spacing={spacing!r} and steps_offset={offset} asks for timestep "
            f"{first if first >= known else last} in {len(t)} steps, but its noise schedule has timesteps 0 to "
            f"{known - 1}: {advice}"
        )
    if bool((t[1:] >= t[:-1]).any()):
        raise ValueError(f"the scheduler's timesteps do not fall: {t.tolist()}; set them with set_timesteps")


def _is(scheduler: Any, name: str) -> bool:
    return name in {cls.__name__ for cls in type(scheduler).__mro__}


def _indexes_schedule(scheduler: Any) -> bool:
    """Whether timesteps are places in a table of ᾱ."""
    return _is(scheduler, "DDPMScheduler") or _is(scheduler, "DDIMScheduler")


def _thresholding(config: Any) -> X0Thresholding:
    """Clipping or thresholding; settings that early schedulers do not have are as diffusers sets them today."""
    if getattr(config, "thresholding", False):
        quantile = getattr(config, "dynamic_thresholding_ratio", 0.995)
        ceiling = getattr(config, "sample_max_value", 1.0)
        if not 0 <= quantile <= 1 or not ceiling > 0:
            raise ValueError(
                f"thresholding with dynamic_thresholding_ratio={quantile} and sample_max_value={ceiling}; expected a "
                "share from 0 to 1 and a value above 0"
            )
        return X0Thresholding(quantile=quantile, ceiling=ceiling)
    if not getattr(config, "clip_sample", True):
        return X0Thresholding()
    clip = getattr(config, "clip_sample_range", 1.0)
    if not clip > 0:
        raise ValueError(f"clip_sample with clip_sample_range={clip}; expected a range above 0")
    return X0Thresholding(clip=clip)


def _prediction(config: Any, t: Int[Tensor, " k"], alpha_bar: Float64[Tensor, " k"]) -> tuple[Tensor, Tensor]:
    """(from_state, from_output) of each prediction type; v as in Salimans & Ho 2022, section 4."""
    kind = getattr(config, "prediction_type", "epsilon")
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if kind == "epsilon":
        if bool((alpha_bar == 0).any()):
            cause = "rescale_betas_zero_snr=True" if getattr(config, "rescale_betas_zero_snr", False) else "the betas"
            raise ValueError(
                f"prediction_type='epsilon' with {cause}: nothing is left of the sample at timestep "
                f"{int(t[alpha_bar == 0][0])} (alphas_cumprod = 0), so that x0 does not follow from epsilon. Use a "
                "network of prediction_type='v_prediction' or 'sample', or timesteps that leave this one out"
            )
        return 1 / signal, -noise / signal
    if kind == "sample":
        return torch.zeros_like(signal), torch.ones_like(signal)
    if kind == "v_prediction":
        return signal, -noise
    raise ValueError(f"prediction_type={kind!r} is not supported; expected 'epsilon', 'sample' or 'v_prediction'")


def _check_levels(
    scheduler: Any, t: Int[Tensor, " k"], now: Float64[Tensor, " k"], then: Float64[Tensor, " k"]
) -> None:
    """Raise ``ValueError`` unless every step goes from a noise level, ᾱ in [0, 1), to one of no more noise."""
    wrong = ~((now >= 0) & (now < 1) & (then >= now) & (then <= 1) & (then > 0))
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        betas = "trained_betas" if getattr(scheduler.config, "trained_betas", None) is not None else "its betas"
        raise ValueError(
            f"the step of the {type(scheduler).__name__} at timestep {int(t[place])} is not defined: alphas_cumprod "
            f"goes from {float(now[place]):g} to {float(then[place]):g} there, and must begin in [0, 1) and not fall. "
            f"Check {betas} (each above 0 and below 1)"
        )


def _read_ddpm(scheduler: Any) -> dict[str, Any]:
    """Ho et al. 2020, equations 6 and 7, for any falling list of timesteps."""
    config = scheduler.config
    t = scheduler.timesteps.cpu().long()
    alpha_bars = scheduler.alphas_cumprod.cpu().double()
    now = alpha_bars[t]
    before = torch.cat([alpha_bars[t[1:]], torch.ones(1, dtype=torch.float64)])
    _check_levels(scheduler, t, now, before)
    from_state, from_output = _prediction(config, t, now)
    alpha = now / before
    beta = 1 - alpha
    return dict(
        timesteps=t,
        a=alpha.sqrt() * (1 - before) / (1 - now),
        b=before.sqrt() * beta / (1 - now),
        sigma=_ddpm_noise(config, t, beta, (1 - before) / (1 - now) * beta),
        from_state=from_state,
        from_output=from_output,
        thresholding=_thresholding(config),
    )


def _ddpm_noise(
    config: Any, t: Int[Tensor, " k"], beta: Float64[Tensor, " k"], posterior: Float64[Tensor, " k"]
) -> Float64[Tensor, " k"]:
    """σ of each step; β and the posterior's variance are the two choices of Ho et al. 2020, section 3.2."""
    kind = getattr(config, "variance_type", "fixed_small")
    if kind in ("fixed_small", "fixed_small_log"):
        sigma = posterior.clamp(min=1e-20).sqrt()
    elif kind == "fixed_large":
        sigma = beta.sqrt()
    elif kind == "fixed_large_log":
        raise ValueError(
            "variance_type='fixed_large_log': the scheduler takes the square root of a negative logarithm there, which "
            "is not a number. Use variance_type='fixed_large'"
        )
    else:
        raise ValueError(
            f"variance_type={kind!r}: the noise must not depend on the network. Use a scheduler with "
            "variance_type='fixed_small' or 'fixed_large' and drop the network's variance channels"
        )
    return torch.where((t > 0) & (sigma > _NO_NOISE), sigma, 0.0)  # diffusers adds no noise at t = 0


def _read_ddim(scheduler: Any, eta: float, use_clipped_model_output: bool) -> dict[str, Any]:
    """Song et al. 2021, equations 12 and 16, with diffusers' fixed stride between timesteps.

    mean = √ᾱ' limit(x̂0) + √(1 − ᾱ' − σ²) ε, where ε comes from the x̂0 before the limit, solved for one effective x̂0.
    """
    config = scheduler.config
    if scheduler.num_inference_steps is None:
        raise ValueError("the DDIMScheduler has no timesteps yet; pass num_inference_steps")
    t = scheduler.timesteps.cpu().long()
    alpha_bars = scheduler.alphas_cumprod.cpu().double()
    previous = t - config.num_train_timesteps // scheduler.num_inference_steps
    final = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    now, before = alpha_bars[t], torch.where(previous >= 0, alpha_bars[previous.clamp(min=0)], final)
    _check_levels(scheduler, t, now, before)
    from_state, from_output = _prediction(config, t, now)
    sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)).clamp(min=0).sqrt()
    direction = 1 - before - sigma**2
    if (direction < -1e-12).any():
        raise ValueError(f"eta={eta} is too large: it adds more noise than a step removes; use 0 < eta <= 1")
    a = direction.clamp(min=0).sqrt() / (1 - now).sqrt()
    b = before.sqrt() - a * now.sqrt()
    thresholding, unclipped_weight, carried = _thresholding(config), None, None
    if thresholding != X0Thresholding() and not use_clipped_model_output:
        a, b, unclipped_weight, carried = _with_epsilon_kept(now, a, b)
    return dict(
        timesteps=t,
        a=a,
        b=b,
        sigma=torch.where(sigma > _NO_NOISE, sigma, 0.0),
        from_state=from_state,
        from_output=from_output,
        thresholding=thresholding,
        unclipped_weight=unclipped_weight,
        carried=carried,
    )


def _with_epsilon_kept(
    now: Float64[Tensor, " k"], a: Float64[Tensor, " k"], b: Float64[Tensor, " k"]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(a, b, unclipped_weight, carried) of a clipped x̂0 with the ε from before the limit; see :class:`ReverseProcess`.

    mean = a x + √ᾱ' limit(x̂0) − a √ᾱ x̂0, whose weights of x̂0 add up to b. Between equal noise levels (a = 1, b = 0,
    and no noise) nothing can be divided by b, and the mean itself takes the place of x̂0.
    """
    equal = b < _EQUAL_LEVELS
    unclipped_weight = torch.where(equal, -now.sqrt(), -a * now.sqrt() / torch.where(equal, 1.0, b))
    carried = equal.double() if bool(equal.any()) else None
    kept = unclipped_weight if bool((unclipped_weight != 0).any()) else None
    return torch.where(equal, 0.0, a), torch.where(equal, 1.0, b), kept, carried


_EXPECTED = (
    "expected a diffusers scheduler of a denoising diffusion, such as DDIMScheduler, DPMSolverMultistepScheduler or "
    "EulerDiscreteScheduler"
)


def check_steppable(scheduler: Any) -> Any:
    """Refuse what cannot be stepped from noise to a sample.

    Args:
        scheduler: of diffusers, or alike.

    Returns:
        The scheduler.

    Raises:
        ValueError: it is none, of flow matching or another prediction, or has no steps of one output each.
    """
    name = type(scheduler).__name__
    if "FlowMatch" in name or not hasattr(scheduler, "init_noise_sigma"):
        what = "a flow-matching scheduler" if "FlowMatch" in name else "no scheduler with timesteps and noise levels"
        raise ValueError(f"scheduler {name!r} is {what}; {_EXPECTED}")
    kind = getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon")
    if kind not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(f"scheduler {name!r} has prediction_type={kind!r}, which is of flow matching; {_EXPECTED}")
    if not callable(getattr(scheduler, "step", None)):
        raise ValueError(
            f"scheduler {name!r} has no step(model_output, timestep, sample); take one that has, such as DDIMScheduler"
        )
    return scheduler


def check_step(scheduler: Any, arguments: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    """Check that a scheduler's step takes these arguments, and wants no others.

    Args:
        scheduler: see :func:`check_steppable`.
        arguments: of ``step`` besides the network's output, the timestep and the sample.

    Returns:
        All that ``step`` takes, by name.

    Raises:
        ValueError: an argument is unknown, or one without a default is not given.
    """
    name, taken = type(scheduler).__name__, inspect.signature(scheduler.step).parameters
    own = list(taken)[:3]  # the output, the timestep and the sample
    if unknown := sorted(set(arguments) - set(taken)):
        raise ValueError(
            f"step_arguments {unknown} are no arguments of {name}.step; it takes "
            f"{', '.join(each for each in taken if each not in own)}"
        )
    wanted = [
        each.name
        for each in taken.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if absent := sorted(set(wanted) - {*own, *arguments}):
        raise ValueError(
            f"{name}.step wants {' and '.join(absent)} as well: give them in step_arguments if they are the same at "
            f"every step; {_EXPECTED}"
        )
    return taken


def check_first_step(scheduler: Any, arguments: Mapping[str, Any]) -> None:
    """Check that a scheduler goes from noise to a sample, by making its first step from zeros.

    Args:
        scheduler: with its timesteps set; a copy is stepped.
        arguments: of ``step`` besides the network's output, the timestep and the sample.

    Raises:
        ValueError: its timesteps rise somewhere, or the step is refused.
    """
    name, t, x = type(scheduler).__name__, scheduler.timesteps, torch.zeros(1, 2, 2)
    if bool((t[1:] > t[:-1]).any()):
        raise ValueError(f"scheduler {name!r} steps towards noise somewhere (its timesteps rise); {_EXPECTED}")
    scheduler = copy.deepcopy(scheduler)
    try:
        with torch.random.fork_rng(devices=[]):  # what it draws here must not change later samples
            scheduler.step(x, t[0], scheduler.scale_model_input(x, t[0]), **arguments).prev_sample.shape  # noqa: B018
    except Exception as error:  # whatever diffusers says
        raise ValueError(
            f"{name}.step(model_output, timestep, sample) fails at its first timestep ({one_line(error, 200)}); "
            f"{_EXPECTED}"
        ) from error
