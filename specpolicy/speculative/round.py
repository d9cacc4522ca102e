"""One round: draft a window, evaluate it in one batched pass, keep what the verifier allows, repair the first miss."""

from __future__ import annotations

import torch
from torch import Tensor

from .chains import Chains
from .denoiser import gather_rows
from .drafters import Drafter, DraftStart
from .process import per_row
from .randomness import RandomSource
from .verifiers import Comparison, Rejection, Verifier


def run_round(chains: Chains, drafter: Drafter, verifier: Verifier, lengths: Tensor, random: RandomSource) -> None:
    """Advance every unfinished chain by the accepted steps and one more.

    Args:
        chains: changed in place.
        lengths: steps to draft from each position, shape ``(K,)``.
    """
    process, active = chains.process, chains.active()
    stale = chains.anchor_k[active] < (chains.k[active] if drafter.refreshes else 0)
    if stale.any():
        chains.anchor(active[stale])

    k, x, length = chains.k[active], chains.x[active], lengths[chains.k[active]]
    event, order, drawn = x.shape[1:], active.tolist(), length.tolist()
    noise = random.window_noise(drawn, event, order)
    uniform = random.window_uniform(drawn, order)
    fresh_noise = random.noise(event, order)
    anchor = (chains.anchor_k[active], chains.anchor_x[active], chains.anchor_x0[active])
    draft = drafter.draft(DraftStart(chains.chain, k, x, *anchor, noise, gather_rows(chains.cond, active)))

    # The pass: every drafted state and the start, unless the start's x̂0 is known already.
    column = torch.arange(noise.shape[1] + 1, device=k.device)
    known = (anchor[0] == k)[:, None] & (column == 0)
    ask = (column <= length[:, None]) & ~known
    where = (k[:, None] + column).clamp(max=process.num_steps - 1)
    target = anchor[2][:, None].repeat(1, len(column), *[1] * len(event))
    if ask.any():
        owner = active[:, None].expand_as(ask)[ask]
        target[ask] = chains.target_x0(owner, where[ask], draft.states[ask])

    # Draft against target at every drafted step: a x cancels, (m_D − m_T)/σ = (b/σ)(x̂0_draft − x̂0_target).
    step = where[:, :-1]
    gain = torch.where(process.sigma[step] > 0, process.b[step] / process.sigma[step], 0.0)
    gap = (draft.x0 - target[:, :-1]) * gain.view(*gain.shape, *[1] * len(event))
    comparison = Comparison.of(gap, noise, length)
    verdict = verifier.judge(comparison, uniform[:, :-1])

    # The step after the accepted ones comes from the target, with a repaired noise where the draft was rejected.
    row, taken = torch.arange(len(active), device=k.device), verdict.accepted
    end, x_end, x0_end = k + taken, draft.states[row, taken], target[row, taken]
    final_noise = fresh_noise
    rejected = (taken < length).nonzero().squeeze(1)
    if len(rejected):
        at = taken[rejected]
        rejection = Rejection(
            distance=comparison.distance[rejected, at],
            along=comparison.along[rejected, at],
            log_scale=verdict.log_scale[rejected],
            uniform=uniform[rejected, -1],
        )
        coordinate = verifier.repair(rejection)
        base = noise[rejected, at] if verifier.keeps_noise else fresh_noise[rejected]
        final_noise = fresh_noise.index_copy(0, rejected, _set_coordinate(base, gap[rejected, at], coordinate))
    x_next = process.mean(x_end, x0_end, end) + per_row(process.sigma[end], x) * final_noise

    chains.record(active, k, column <= taken[:, None], draft.states, target)
    chains.account.add(active, k, length, taken, len(chains.k))
    chains.set_anchor(active, end, x_end, x0_end)
    chains.x[active], chains.k[active] = x_next, end + 1


def _set_coordinate(noise: Tensor, direction: Tensor, coordinate: Tensor) -> Tensor:
    """``noise`` with its component along ``direction`` replaced by ``coordinate``, row by row; in float64 inside."""
    flat, line = noise.flatten(1).double(), direction.flatten(1).double()
    line = line / torch.linalg.vector_norm(line, dim=1, keepdim=True).clamp(min=1e-300)
    moved = flat + (coordinate - (flat * line).sum(1))[:, None] * line
    return moved.view_as(noise).to(noise.dtype)
