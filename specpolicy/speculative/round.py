"""One round: draft a window, evaluate it in one batched pass, keep what the verifier allows, repair the first miss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from specpolicy.speculative.chain_batch import ChainBatch
from specpolicy.speculative.denoiser import gather_rows
from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart, UnverifiedTail
from specpolicy.speculative.initial_guess import X0Guess
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.process import ReverseProcess, per_row
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.verifiers import DraftTargetGap, Rejection, Verifier
from specpolicy.speculative.window import WindowSchedule


@dataclass(frozen=True)
class WindowResult:
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


def verify_window(
    process: ReverseProcess,
    k: Int[Tensor, " n"],
    draft: Draft,
    target: Float[Tensor, "n w1 ..."],
    noise: Float[Tensor, "n w ..."],
    length: Int[Tensor, " n"],
    verifier: Verifier,
    uniform: Float64[Tensor, "n w1"],
    fresh_noise: Float[Tensor, "n ..."],
) -> WindowResult:
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
    comparison = DraftTargetGap.of(gap, noise, length)
    verdict = verifier.judge(comparison, uniform[:, :-1])

    # The step after the accepted ones comes from the target, with a repaired noise where the draft was rejected.
    taken = verdict.accepted
    end, x_end, x0_end = k + taken, draft.states[row, taken], target[row, taken]
    rejected, at = taken < length, taken.clamp(max=noise.shape[1] - 1)
    rejection = Rejection(  # of the rows without one, numbers that are easily solved for
        distance=torch.where(rejected, comparison.distance[row, at], 1.0),
        noise_along_gap=torch.where(rejected, comparison.noise_along_gap[row, at], 0.0),
        log_scale=torch.where(rejected, verdict.log_scale, 0.0),
        uniform=uniform[:, -1],
    )
    base = noise[row, at] if verifier.causal else fresh_noise
    repaired = _set_coordinate(base, gap[row, at], verifier.repair(rejection))
    final_noise = torch.where(per_row(rejected, base), repaired, fresh_noise)
    return WindowResult(taken, x_end, x0_end, process.step(x_end, x0_end, end, final_noise))


def target_step(
    process: ReverseProcess,
    k: Int[Tensor, " n"],
    x: Float[Tensor, "n ..."],
    x0: Float[Tensor, "n ..."],
    fresh_noise: Float[Tensor, "n ..."],
) -> WindowResult:
    """Make one step of the target from ``x``: what :func:`verify_window` does with a window of no drafts."""
    return WindowResult(torch.zeros_like(k), x, x0, process.step(x, x0, k, fresh_noise))


def _set_coordinate(noise: Tensor, direction: Tensor, coordinate: Tensor) -> Tensor:
    """``noise`` with its component along ``direction`` replaced by ``coordinate``, row by row; in float64 inside."""
    flat, line = noise.flatten(1).double(), direction.flatten(1).double()
    line = line / torch.linalg.vector_norm(line, dim=1, keepdim=True).clamp(min=1e-300)
    moved = flat + (coordinate - (flat * line).sum(1))[:, None] * line
    return moved.view_as(noise).to(noise.dtype)


def run_round(
    chains: ChainBatch,
    drafter: Drafter,
    verifier: Verifier,
    lengths: WindowSchedule,
    random: ChainGenerators,
    initial_guess: X0Guess | None = None,
) -> None:
    """Draft, verify, and advance every unfinished chain by the accepted steps and one more.

    Args:
        chains: changed in place.
        lengths: says how many steps to draft from where the chains are.
        initial_guess: what takes the place of x̂0 where the target's is not known yet; None: a pass is spent on it.
    """
    active = chains.active()
    stale = chains.last_eval_k[active] < (chains.k[active] if drafter.refreshes else 0)
    if initial_guess is not None:
        stale &= chains.last_eval_k[active] >= 0
    if stale.any():
        chains.evaluate_current(active[stale])

    k, x, length = chains.k[active], chains.x[active], lengths(chains, active)
    event, order, drawn = x.shape[1:], active.tolist(), length.tolist()
    noise = random.window_noise(drawn, event, order)
    uniform = random.window_uniform(drawn, order)
    fresh_noise = random.noise(event, order)
    cond = gather_rows(chains.cond, active)
    last_eval_k, last_eval_x, last_eval_x0 = (
        chains.last_eval_k[active],
        chains.last_eval_x[active],
        chains.last_eval_x0[active],
    )
    new = last_eval_k < 0
    if initial_guess is not None and new.any():
        guess = initial_guess.x0(x[new], gather_rows(cond, new.nonzero().squeeze(1))).to(x.dtype)
        last_eval_k, last_eval_x = torch.where(new, k, last_eval_k), last_eval_x.index_put((new,), x[new])
        last_eval_x0 = last_eval_x0.index_put((new,), guess)
    tail = None if chains.tail is None else chains.tail.rows(active)
    if tail is not None:
        noise = tail.noises(noise)
    draft = drafter.draft(DraftStart(chains.chain, k, x, last_eval_k, last_eval_x, last_eval_x0, noise, cond, tail))
    _verify(chains, active, draft, noise, length, verifier, uniform, fresh_noise)


def replay_round(
    chains: ChainBatch, predraft: PreDraft, steps: int, verifier: Verifier, random: ChainGenerators
) -> None:
    """Verify the first ``steps`` steps of a pre-drafted chain in one pass, as if they had just been drafted.

    The chains must be at its start. Its noises are fresh: independent of the condition and of all else.
    """
    active = chains.active()
    drawn, order = [steps] * len(active), active.tolist()
    uniform = random.window_uniform(drawn, order)
    fresh_noise = random.noise(chains.x.shape[1:], order)
    draft = Draft(predraft.states[: steps + 1].transpose(0, 1), predraft.x0[:steps].transpose(0, 1))
    noise, length = predraft.noise[:steps].transpose(0, 1), torch.full_like(active, steps)
    _verify(chains, active, draft, noise, length, verifier, uniform, fresh_noise)
    chains.replayed = True


def _verify(
    chains: ChainBatch,
    active: Tensor,
    draft: Draft,
    noise: Tensor,
    length: Tensor,
    verifier: Verifier,
    uniform: Tensor,
    fresh_noise: Tensor,
) -> None:
    """Evaluate a draft in one batched pass, keep what the verifier allows, and make one more step.

    Args:
        chains: changed in place. active: those drafted for, shape ``(n,)``.
        draft: from the present state of each on. noise: what it was drafted with, shape ``(n, w, *event)``.
        length: drafted steps that count, shape ``(n,)``, at most K − 1 − k.
        uniform: numbers in [0, 1), shape ``(n, w + 1)``. fresh_noise: for the one more step, shape ``(n, *event)``.
    """
    process, k, x = chains.process, chains.k[active], chains.x[active]
    event = x.shape[1:]
    # The pass: every drafted state and the start, unless the start's x̂0 is known already.
    column = torch.arange(noise.shape[1] + 1, device=k.device)
    known = (chains.last_eval_k[active] == k)[:, None] & (column == 0)
    ask = (column <= length[:, None]) & ~known
    where = k[:, None] + column
    target = chains.last_eval_x0[active][:, None].repeat(1, len(column), *[1] * len(event))
    if ask.any():
        owner = active[:, None].expand_as(ask)[ask]
        target[ask] = chains.target_x0(owner, where[ask], draft.states[ask])

    if length.any():
        settled = verify_window(process, k, draft, target, noise, length, verifier, uniform, fresh_noise)
    else:  # nothing to judge, and a round should cost little more than a step of a sequential sampler
        settled = target_step(process, k, x, target[:, 0], fresh_noise)
    taken, end, x0_end = settled.accepted, k + settled.accepted, settled.x0_end
    if chains.draft_x0_error is not None:
        row = torch.arange(len(active), device=k.device)
        _measure(
            chains, chains.draft_x0_error, active, end, draft.x0[row, taken.clamp(max=draft.x0.shape[1] - 1)] - x0_end
        )
    chains.record(active, k, column <= taken[:, None], draft.states, target)
    chains.log.add(active, k, length, taken, len(chains.k))
    chains.set_last_eval(active, end, settled.x_end, x0_end)
    if chains.tail is not None:
        chains.keep_tail(active, UnverifiedTail.after(draft.states, draft.x0, target, noise, length, taken))
    chains.x[active], chains.k[active] = settled.x_next, end + 1


def _measure(chains: ChainBatch, draft_x0_error: Tensor, active: Tensor, end: Tensor, difference: Tensor) -> None:
    """Note how far the draft's x̂0 was from the target's at ``end``; nothing where it was the target's own."""
    begin = torch.where(chains.last_eval_k[active] < 0, chains.k[active], chains.last_eval_k[active])
    told = begin < end
    draft_x0_error[active[told]] = torch.linalg.vector_norm(difference[told].flatten(1).double(), dim=1)
    chains.draft_x0_error_from[active[told]] = begin[told]
