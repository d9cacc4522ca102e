"""The noises that a recorded trajectory must have been driven by."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .process import ReverseProcess
from .result import SampleResult


def innovations(process: ReverseProcess, result: SampleResult) -> Float[Tensor, "k b ..."]:
    """z_k = (x_{k+1} − a_k x_k − b_k x̂0_k) / σ_k for every step with noise, in float64.

    If the trajectory has the law of the sequential sampler, all of these are independent standard normal numbers,
    whatever the network is.

    Args:
        process: the chain that was sampled.
        result: of a call with ``record=True``. Its x̂0 may be replaced by a fresh evaluation of the network at
            ``result.trajectory``, which makes the check independent of the sampler's own bookkeeping.

    Raises:
        ValueError: nothing was recorded.
    """
    if result.trajectory is None or result.x0 is None:
        raise ValueError("the result holds no trajectory; call the sampler with record=True")
    states, x0 = result.trajectory.double(), result.x0.double()
    noisy = process.sigma > 0
    shape = (-1, *[1] * (states.ndim - 1))
    a, b, sigma = (c.double().to(states.device).view(shape) for c in (process.a, process.b, process.sigma))
    z = (states[1:] - a * states[:-1] - b * x0) / torch.where(sigma > 0, sigma, 1.0)
    return z[noisy.to(z.device)]
