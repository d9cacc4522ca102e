"""Log-probability of recorded chains under a policy: what policy gradients over denoising steps need (DPPO).

A transition of a reverse process is Gaussian, x_{k+1} ~ N(a_k x_k + b_k x̂0_k, σ_k² I), so its density is known in
closed form, given the network. Speculation does not change it: an exact sampler's trajectories have the distribution of
the sequential chain, and :func:`chain_log_prob` is the density of that distribution. Few-step DDIM with η = 0 has no
such density; all its steps are deterministic.

Source: Ren et al. 2024, Diffusion Policy Policy Optimization (DPPO), equation 4.2: the log-probability of an action is
taken step by step along the chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, call_denoiser, gather_rows, prepared
from specpolicy.speculative.process import ReverseProcess, per_row


@dataclass(frozen=True)
class ChainLogProb:
    """Log-densities of the transitions of recorded chains, in nats, float64.

    Attributes:
        transitions: log p(x_{k+1} | x_k), summed over the coordinates of the event, shape ``(J, B)``.
        steps: the k of each row of ``transitions``, rising, shape ``(J,)``. Deterministic steps (σ = 0; the last one
            of most chains) have no density and are left out.
    """

    transitions: Float[Tensor, "j b"]
    steps: Int[Tensor, " j"]

    @property
    def total(self) -> Float[Tensor, " b"]:
        """Log-density of all these transitions given the initial noise, shape ``(B,)``."""
        return self.transitions.sum(dim=0)


def recorded_log_prob(
    process: ReverseProcess, trajectory: Float[Tensor, "k1 b ..."], x0: Float[Tensor, "k b ..."]
) -> ChainLogProb:
    """Compute the log-probability of chains under the network that made them, from what was recorded.

    Args:
        process: the chain that was sampled, K steps.
        trajectory: every state from noise to sample, shape ``(K + 1, B, *event)``.
        x0: the target's x̂0 at the first K of them, shape ``(K, B, *event)``.

    Returns:
        The log-densities of all steps with noise.

    Raises:
        ValueError: the shapes do not go with K, or no step of the process has noise.
    """
    steps = _noisy_steps(process, trajectory)
    if x0.shape != trajectory[1:].shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; expected {tuple(trajectory[1:].shape)}, as the trajectory")
    return _gaussian(process, trajectory, x0.double()[steps], steps)


def chain_log_prob(
    process: ReverseProcess,
    denoiser: Denoiser,
    trajectory: Float[Tensor, "k1 b ..."],
    cond: Cond = None,
    steps: Int[Tensor, " j"] | None = None,
) -> ChainLogProb:
    """Compute the log-probability of recorded chains under a network, with gradients to its weights.

    The network is evaluated once, on J · B rows. It may be another one than the chains were sampled with: their ratio
    of probabilities is the importance weight of DPPO's clipped objective.

    Args:
        process: the chain that was sampled, K steps.
        denoiser: the network.
        trajectory: every state from noise to sample, shape ``(K + 1, B, *event)``; no gradient flows into it unless it
            requires one.
        cond: the conditions of the chains, leading dimension B.
        steps: which steps, each from 0 to K − 1 and with noise, e.g. the last ten; None takes all steps with noise.

    Returns:
        The log-densities, rows in the order of ``steps``.

    Raises:
        ValueError: the shapes do not go with K, a step is out of range or deterministic, or no step has noise.
        DenoiserError: the network returned the wrong shape, NaN or infinity.
    """
    noisy = _noisy_steps(process, trajectory)
    chosen = noisy if steps is None else steps.to(noisy)
    if steps is not None and not bool(torch.isin(chosen, noisy).all()):
        wrong = chosen[~torch.isin(chosen, noisy)].tolist()
        raise ValueError(
            f"steps {wrong} have no density: expected steps with noise, of which this process has "
            f"{len(noisy)} between {int(noisy[0])} and {int(noisy[-1])}"
        )
    count, batch = len(chosen), trajectory.shape[1]
    here = process.to(trajectory.device, trajectory.dtype)
    states = trajectory[chosen].flatten(0, 1)
    k = chosen.repeat_interleave(batch)
    rows = torch.arange(batch, device=trajectory.device).repeat(count)
    output = call_denoiser(denoiser, states, here.timesteps[k], gather_rows(prepared(denoiser, cond), rows))
    x0 = here.x0(states, output, k).double().reshape(count, batch, *trajectory.shape[2:])
    return _gaussian(process, trajectory, x0, chosen)


def _noisy_steps(process: ReverseProcess, trajectory: Tensor) -> Tensor:
    """Steps with σ > 0, on the trajectory's device."""
    if trajectory.ndim < 2 or len(trajectory) != process.num_steps + 1:
        raise ValueError(
            f"the trajectory has shape {tuple(trajectory.shape)}; a chain of {process.num_steps} steps has "
            f"{process.num_steps + 1} states: hand in the process that it was sampled with, and result.trajectory"
        )
    noisy = (process.sigma > 0).nonzero().flatten()
    if len(noisy) == 0:
        raise ValueError(
            "every step of this process is deterministic, so its chains have no log-probability; "
            "use DDPM, or DDIM with eta > 0"
        )
    return noisy.to(trajectory.device)


def _gaussian(process: ReverseProcess, trajectory: Tensor, x0: Tensor, steps: Tensor) -> ChainLogProb:
    """Log-densities of N(a x + b x̂0, σ² I) at the next states, for x̂0 at ``steps``."""
    states = trajectory.double()
    now = states[steps]
    a, b, sigma = (c.double().to(states.device)[steps] for c in (process.a, process.b, process.sigma))
    z = (states[steps + 1] - per_row(a, now) * now - per_row(b, now) * x0) / per_row(sigma, now)
    size = math.prod(trajectory.shape[2:])
    squares = z.square().flatten(2).sum(dim=2) if z.ndim > 2 else z.square()
    constant = size * (sigma.log() + 0.5 * math.log(2 * math.pi))
    return ChainLogProb(-0.5 * squares - constant[:, None], steps)
