"""One round: draft a window, evaluate it in one batched pass, keep what the verifier allows, repair the first miss."""

from __future__ import annotations

import torch
from torch import Tensor

from .chains import Chains
from .denoiser import gather_rows
from .drafters import Draft, Drafter, DraftStart
from .leftover import Leftover
from .opening import Opening
from .predraft import PreDraft
from .randomness import RandomSource
from .settle import settle, step_plainly
from .verifiers import Verifier
from .window import Lengths


def run_round(
    chains: Chains,
    drafter: Drafter,
    verifier: Verifier,
    lengths: Lengths,
    random: RandomSource,
    opening: Opening | None = None,
) -> None:
    """Draft, verify, and advance every unfinished chain by the accepted steps and one more.

    Args:
        chains: changed in place.
        lengths: says how many steps to draft from where the chains are.
        opening: what takes the place of x̂0 where the target's is not known yet; None: a pass is spent on it.
    """
    active = chains.active()
    stale = chains.anchor_k[active] < (chains.k[active] if drafter.refreshes else 0)
    if opening is not None:
        stale &= chains.anchor_k[active] >= 0
    if stale.any():
        chains.anchor(active[stale])

    k, x, length = chains.k[active], chains.x[active], lengths(chains, active)
    event, order, drawn = x.shape[1:], active.tolist(), length.tolist()
    noise = random.window_noise(drawn, event, order)
    uniform = random.window_uniform(drawn, order)
    fresh_noise = random.noise(event, order)
    cond = gather_rows(chains.cond, active)
    anchor_k, anchor_x, anchor_x0 = chains.anchor_k[active], chains.anchor_x[active], chains.anchor_x0[active]
    new = anchor_k < 0
    if opening is not None and new.any():
        guess = opening.x0(x[new], gather_rows(cond, new.nonzero().squeeze(1))).to(x.dtype)
        anchor_k, anchor_x = torch.where(new, k, anchor_k), anchor_x.index_put((new,), x[new])
        anchor_x0 = anchor_x0.index_put((new,), guess)
    leftover = None if chains.leftover is None else chains.leftover.rows(active)
    if leftover is not None:
        noise = leftover.noises(noise)
    draft = drafter.draft(DraftStart(chains.chain, k, x, anchor_k, anchor_x, anchor_x0, noise, cond, leftover))
    _verify(chains, active, draft, noise, length, verifier, uniform, fresh_noise)


def replay_round(chains: Chains, predraft: PreDraft, steps: int, verifier: Verifier, random: RandomSource) -> None:
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
    chains: Chains,
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
    known = (chains.anchor_k[active] == k)[:, None] & (column == 0)
    ask = (column <= length[:, None]) & ~known
    where = k[:, None] + column
    target = chains.anchor_x0[active][:, None].repeat(1, len(column), *[1] * len(event))
    if ask.any():
        owner = active[:, None].expand_as(ask)[ask]
        target[ask] = chains.target_x0(owner, where[ask], draft.states[ask])

    if length.any():
        settled = settle(process, k, draft, target, noise, length, verifier, uniform, fresh_noise)
    else:  # nothing to judge, and a round should cost little more than a step of a sequential sampler
        settled = step_plainly(process, k, x, target[:, 0], fresh_noise)
    taken, end, x0_end = settled.accepted, k + settled.accepted, settled.x0_end
    if chains.missed is not None:
        row = torch.arange(len(active), device=k.device)
        _measure(chains, chains.missed, active, end, draft.x0[row, taken.clamp(max=draft.x0.shape[1] - 1)] - x0_end)
    chains.record(active, k, column <= taken[:, None], draft.states, target)
    chains.account.add(active, k, length, taken, len(chains.k))
    chains.set_anchor(active, end, settled.x_end, x0_end)
    if chains.leftover is not None:
        chains.keep_leftover(active, Leftover.after(draft.states, draft.x0, target, noise, length, taken))
    chains.x[active], chains.k[active] = settled.x_next, end + 1


def _measure(chains: Chains, missed: Tensor, active: Tensor, end: Tensor, difference: Tensor) -> None:
    """Note how far the draft's x̂0 was from the target's at ``end``; nothing where it was the target's own."""
    begin = torch.where(chains.anchor_k[active] < 0, chains.k[active], chains.anchor_k[active])
    told = begin < end
    missed[active[told]] = torch.linalg.vector_norm(difference[told].flatten(1).double(), dim=1)
    chains.missed_from[active[told]] = begin[told]
