"""What becomes of a draft once the target has spoken: arithmetic only, of one shape whatever the numbers are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .drafters import Draft
from .process import ReverseProcess, per_row
from .verifiers import Comparison, Rejection, Verifier


@dataclass(frozen=True)
class Settled:
    """Where n chains stand after a round.

    Attributes:
        accepted: drafted steps that are kept, shape ``(n,)``.
        x_end, x0_end: the last accepted state and the target's x̂0 there.
        x_next: the state one step further, drawn from the target or from the residual.
    """

    accepted: Int[Tensor, " n"]
    x_end: Float[Tensor, "n ..."]
    x0_end: Float[Tensor, "n ..."]
    x_next: Float[Tensor, "n ..."]


def settle(
    process: ReverseProcess,
    k: Int[Tensor, " n"],
    draft: Draft,
    target: Float[Tensor, "n w1 ..."],
    noise: Float[Tensor, "n w ..."],
    length: Int[Tensor, " n"],
    verifier: Verifier,
    uniform: Float64[Tensor, "n w1"],
    fresh_noise: Float[Tensor, "n ..."],
) -> Settled:
    """Keep what the verifier allows of a draft, and make one more step.

    No number is looked at here, so that a round can be compiled or captured as it is.

    Args:
        process: on the device and in the dtype of the states.
        k: position of each chain, at most K − 1.
        draft: from there on. target: the target's x̂0 at its states. noise: what it was drafted with.
        length: drafted steps that count, at most K − 1 − k, so that the one more step is still in the chain.
        uniform: numbers in [0, 1); the last column is for the repair. fresh_noise: for the one more step.
    """
    row, column = torch.arange(len(k), device=k.device), torch.arange(noise.shape[1], device=k.device)
    step = (k[:, None] + column).clamp(max=process.num_steps - 1)  # columns beyond ``length`` are padding
    # Draft against target at every drafted step: a x cancels, (m_D − m_T)/σ = (b/σ)(x̂0_draft − x̂0_target).
    gain = torch.where(process.sigma[step] > 0, process.b[step] / process.sigma[step], 0.0)
    gap = (draft.x0 - target[:, :-1]) * gain.view(*gain.shape, *[1] * (noise.ndim - 2))
    comparison = Comparison.of(gap, noise, length)
    verdict = verifier.judge(comparison, uniform[:, :-1])

    # The step after the accepted ones comes from the target, with a repaired noise where the draft was rejected.
    taken = verdict.accepted
    end, x_end, x0_end = k + taken, draft.states[row, taken], target[row, taken]
    rejected, at = taken < length, taken.clamp(max=noise.shape[1] - 1)
    rejection = Rejection(  # of the rows without one, numbers that are easily solved for
        distance=torch.where(rejected, comparison.distance[row, at], 1.0),
        along=torch.where(rejected, comparison.along[row, at], 0.0),
        log_scale=torch.where(rejected, verdict.log_scale, 0.0),
        uniform=uniform[:, -1],
    )
    base = noise[row, at] if verifier.causal else fresh_noise
    repaired = _set_coordinate(base, gap[row, at], verifier.repair(rejection))
    final_noise = torch.where(per_row(rejected, base), repaired, fresh_noise)
    return Settled(taken, x_end, x0_end, process.step(x_end, x0_end, end, final_noise))


def step_plainly(
    process: ReverseProcess,
    k: Int[Tensor, " n"],
    x: Float[Tensor, "n ..."],
    x0: Float[Tensor, "n ..."],
    fresh_noise: Float[Tensor, "n ..."],
) -> Settled:
    """What :func:`settle` makes of windows without a step: one of the target's own, from ``x`` with its x̂0 there."""
    return Settled(torch.zeros_like(k), x, x0, process.step(x, x0, k, fresh_noise))


def _set_coordinate(noise: Tensor, direction: Tensor, coordinate: Tensor) -> Tensor:
    """``noise`` with its component along ``direction`` replaced by ``coordinate``, row by row; in float64 inside."""
    flat, line = noise.flatten(1).double(), direction.flatten(1).double()
    line = line / torch.linalg.vector_norm(line, dim=1, keepdim=True).clamp(min=1e-300)
    moved = flat + (coordinate - (flat * line).sum(1))[:, None] * line
    return moved.view_as(noise).to(noise.dtype)
