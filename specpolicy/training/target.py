"""What the network is taught to predict."""

from __future__ import annotations

from diffusers import DDPMScheduler
from torch import Tensor


def training_target(scheduler: DDPMScheduler, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """The prediction that gives ``clean`` back, by the scheduler's ``prediction_type``.

    Noise ε (Ho et al. 2020, equation 14), x0 itself, or velocity √ᾱ ε − √(1−ᾱ) x0 (Salimans and Ho 2022).

    Raises:
        ValueError: the prediction type is another.
    """
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "sample":
            return clean
        case "v_prediction":
            return scheduler.get_velocity(clean, noise, timestep)
        case other:
            raise ValueError(f"prediction_type {other!r}; known: epsilon, sample, v_prediction")
