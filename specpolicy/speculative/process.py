"""The reverse process: a chain of Gaussian steps, and the timesteps of short ones."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from specpolicy.speculative.schedulers import X0Thresholding, read_deterministic, read_scheduler


@dataclass(frozen=True)
class ReverseProcess:
    """A reverse diffusion with K steps.

    Step k = 0 … K − 1 leads from noise to sample::

        x_{k+1} = a_k x_k + b_k x̂0(x_k, t_k) + σ_k z_k,        z_k ~ N(0, I)

    ``from_scheduler`` reads the numbers off a diffusers scheduler. They are kept in float64; samplers work on a copy
    made by :meth:`to`.

    Attributes:
        timesteps: the scheduler's timestep of each step, shape ``(K,)``.
        a, b, sigma: coefficients of each step, shape ``(K,)``. A step with σ = 0 is deterministic.
        from_state, from_output: x̂0 = from_state · x + from_output · (network output), shape ``(K,)``.
        thresholding: clipping or thresholding of x̂0.
        unclipped_weight: weight of the x̂0 *before* clipping in the x̂0 that the chain uses, shape ``(K,)``; None where
            it is 0 throughout. DDIM has such weights, since diffusers clips x̂0 but keeps the ε from before.
        carried: weight of the state in it, shape ``(K,)``; None where it is 0 throughout. A DDIM step between equal
            noise levels moves the state by no multiple of any x̂0 (b = 0), but by √ᾱ (clip(x̂0) − x̂0): it is told
            as a = 0, b = 1 and an x̂0_used that is the next state itself. In full::

                x̂0_used = clip(x̂0) + unclipped_weight (x̂0 − clip(x̂0)) + carried (x − clip(x̂0))
        analytic: whether σ makes up for the spread of x0 around x̂0, see :meth:`with_analytic_variance`.

    Raises:
        ValueError: a coefficient is not finite.
    """

    timesteps: Int[Tensor, " k"]
    a: Float[Tensor, " k"]
    b: Float[Tensor, " k"]
    sigma: Float[Tensor, " k"]
    from_state: Float[Tensor, " k"]
    from_output: Float[Tensor, " k"]
    thresholding: X0Thresholding
    unclipped_weight: Float[Tensor, " k"] | None = None
    carried: Float[Tensor, " k"] | None = None
    analytic: bool = False

    def __post_init__(self) -> None:
        """Check that every coefficient is finite."""
        for name in ("a", "b", "sigma", "from_state", "from_output", "unclipped_weight", "carried"):
            values = getattr(self, name)
            if values is not None and not bool(values.isfinite().all()):
                step = int((~values.isfinite()).nonzero()[0])
                raise ValueError(
                    f"coefficient {name} of step {step} (timestep {self.timesteps[step].item()}) is "
                    f"{values[step].item()}: the noise schedule leaves this step undefined"
                )

    @property
    def num_steps(self) -> int:
        """K, the number of steps of the chain: the network evaluations of a sequential sampler."""
        return len(self.timesteps)

    @staticmethod
    def from_scheduler(
        scheduler: Any,
        num_inference_steps: int | None = None,
        *,
        timesteps: list[int] | None = None,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> ReverseProcess:
        """Read the chain off a diffusers ``DDPMScheduler`` or ``DDIMScheduler``.

        Args:
            scheduler: it is copied, not changed.
            num_inference_steps: K. None keeps the timesteps that the scheduler has already been set to.
            timesteps: a custom, falling list of timesteps instead (DDPM only).
            eta: DDIM's η, the share of DDPM's noise to keep; must be positive (Song et al. 2021, equation 16).
            use_clipped_model_output: DDIM only: whether ε is computed again from the clipped x̂0, as the argument of
                ``DDIMScheduler.step`` of that name says.

        Raises:
            ValueError: the scheduler has no fixed Gaussian kernel (η = 0, learned variance, another class), its
                timesteps are not in its noise schedule, or a step of it is not finite; the message names the settings
                and says what to use instead.
        """
        return ReverseProcess(
            **read_scheduler(scheduler, num_inference_steps, timesteps, eta, use_clipped_model_output)
        )

    @staticmethod
    def deterministic(scheduler: Any, num_inference_steps: int | None = None) -> ReverseProcess:
        """The steps of a diffusers ``DDIMScheduler`` with η = 0: σ = 0 throughout, so there is nothing to speculate on.

        Raises:
            ValueError: it is another scheduler, has no timesteps yet, or those are not in its noise schedule.
        """
        return ReverseProcess(**read_deterministic(scheduler, num_inference_steps))

    def with_analytic_variance(self, x0_variance: Float[Tensor, " k"]) -> ReverseProcess:
        """The same means with more noise: what a step loses by taking x̂0 for x0, as far as one number can say it.

        x_{k+1} given x_k has the variance σ_k² + b_k² Var(x0 | x_k), of which a DDPM chain keeps the first part alone.
        The second is nothing where steps are short, and a chain of few, long steps without it is too narrow: with it,
        such a chain comes close to the long one's distribution (Bao et al. 2022, Analytic-DPM, theorem 1). Steps
        without noise keep none.

        Args:
            x0_variance: mean over coordinates of Var(x0 | x_k), at the timestep of each step.

        Raises:
            ValueError: it is not a number per step, or one is negative or not finite.
        """
        given = x0_variance.to(self.sigma)
        if given.shape != self.sigma.shape or not bool((given.isfinite() & (given >= 0)).all()):
            raise ValueError(
                f"x0_variance must be {self.num_steps} finite variances, one for each step; got shape "
                f"{tuple(given.shape)} with values from {float(given.min()):g} to {float(given.max()):g}"
            )
        sigma = torch.where(self.sigma > 0, (self.sigma**2 + self.b**2 * given).sqrt(), 0.0)
        return replace(self, sigma=sigma, analytic=True)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ReverseProcess:
        """The same process with its coefficients on ``device`` in ``dtype``."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "timesteps"}
        moved: dict[str, Any] = {
            name: part.to(device, dtype) for name, part in parts.items() if isinstance(part, Tensor)
        }
        return replace(self, timesteps=self.timesteps.to(device), **moved)

    def x0(
        self, x: Float[Tensor, "n ..."], output: Float[Tensor, "n ..."], k: Int[Tensor, " n"]
    ) -> Float[Tensor, "n ..."]:
        """The x̂0 that step ``k`` uses, from state and network output, converted and clipped as the scheduler does."""
        raw = per_row(self.from_state[k], x) * x + per_row(self.from_output[k], x) * output
        clipped = self.thresholding(raw)
        used = clipped
        if self.unclipped_weight is not None:
            used = clipped + per_row(self.unclipped_weight[k], x) * (raw - clipped)
        if self.carried is not None:
            used = used + per_row(self.carried[k], x) * (x - clipped)
        return used

    def mean(
        self, x: Float[Tensor, "n ..."], x0: Float[Tensor, "n ..."], k: Int[Tensor, " n"]
    ) -> Float[Tensor, "n ..."]:
        """Mean of x_{k+1} given x_k and x̂0."""
        return per_row(self.a[k], x) * x + per_row(self.b[k], x) * x0

    def step(
        self, x: Float[Tensor, "n ..."], x0: Float[Tensor, "n ..."], k: Int[Tensor, " n"], noise: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """State at k + 1 that standard normal ``noise`` leads to."""
        return self.mean(x, x0, k) + per_row(self.sigma[k], x) * noise


def per_row(value: Shaped[Tensor, " n"], like: Tensor) -> Tensor:
    """``value`` shaped so that it goes with ``like`` row by row."""
    return value.view(-1, *[1] * (like.ndim - 1))


POWER = 1.75
"""Between even spacing (1), which steps over the end of the chain, and quadratic (2; Song et al. 2021, appendix D),
whose long first steps are hard to draft."""


def dense_timesteps(num_train_timesteps: int, num_inference_steps: int, power: float = POWER) -> list[int]:
    """Falling timesteps from the noisiest to 0, closer to each other where the sample takes shape.

    ``t_i = (T − 1) (1 − i / (K − 1))^power``, rounded, and moved up where two would be the same.

    Args:
        num_train_timesteps: T.
        num_inference_steps: K, from 2 to T.
        power: 1 spaces evenly; at least that.

    Returns:
        K timesteps.

    Raises:
        ValueError: K or the power is out of range.
    """
    last, steps = num_train_timesteps - 1, num_inference_steps
    if not 2 <= steps <= num_train_timesteps or not 1.0 <= power < float("inf"):
        raise ValueError(
            f"num_inference_steps={steps}, power={power:g}: expected 2 to {num_train_timesteps} steps and a power of 1 "
            "or more"
        )
    timesteps = [round(last * (1 - i / (steps - 1)) ** power) for i in range(steps)]
    for i in reversed(range(steps - 1)):
        timesteps[i] = max(timesteps[i], timesteps[i + 1] + 1)
    return timesteps
