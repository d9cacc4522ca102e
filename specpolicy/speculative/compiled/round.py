"""A round in static shapes: from state and random numbers to the next state, without a look at either."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Cond, Denoiser, gather_rows
from ..drafters import Draft, Drafter, DraftStart
from ..leftover import Leftover
from ..linear_chain import LinearChain
from ..opening import Opening
from ..process import per_row
from ..settle import settle
from ..verifiers import Verifier
from .state import Draws, RoundState


@dataclass(frozen=True, eq=False)
class StaticRounds:
    """What the rounds of one sampler and one network have in common.

    Attributes:
        chain: the process and its products, on the states' device and in their dtype.
        denoiser: the network. dtype: what it is called with.
        drafter, verifier, opening: of the sampler.
        table: steps to draft from each position, shape ``(K,)``.
    """

    chain: LinearChain
    denoiser: Denoiser
    dtype: torch.dtype
    drafter: Drafter
    verifier: Verifier
    opening: Opening | None
    table: Int[Tensor, " k"]

    def begin(self, state: RoundState, _: None, cond: Cond) -> RoundState:
        """The x̂0 that the first round drafts with: the opening's, or the target's for one pass."""
        if self.drafter.refreshes:
            return state  # every round begins with a pass of its own
        if self.opening is not None:
            return state._replace(anchor_x0=self.opening.x0(state.x, cond).to(state.x.dtype))
        # Rows that only fill the batch stand behind the last step, where there is nothing to ask.
        x0, finite = self._x0(state.x, state.k.clamp(max=self.chain.process.num_steps - 1), cond)
        return state._replace(
            anchor_x0=x0,
            passes=state.passes + 1,
            evaluations=state.evaluations + 1,
            finite=state.finite & finite.all(),
        )

    def advance(self, state: RoundState, draws: Draws, cond: Cond) -> RoundState:
        """Draft as many steps as ``draws`` has noise for, verify them in one pass, and go on."""
        last, width = self.chain.process.num_steps - 1, draws.noise.shape[1]
        running, k = state.k <= last, state.k.clamp(max=last)  # finished chains stand at K, and take part idly
        length = torch.where(running, self.table[k], 0).clamp(max=width)
        if self.drafter.refreshes:
            x0, finite = self._x0(state.x, k, cond)
            state = state._replace(
                anchor_k=k,
                anchor_x=state.x.clone(),
                anchor_x0=x0,
                passes=state.passes + running,
                evaluations=state.evaluations + running,
                finite=state.finite & (finite | ~running).all(),
            )
        if state.leftover is not None:
            draws = draws._replace(noise=state.leftover.noises(draws.noise))
        anchor = (state.anchor_k, state.anchor_x, state.anchor_x0)
        draft = self.drafter.draft(DraftStart(self.chain, k, state.x, *anchor, draws.noise, cond, state.leftover))
        return self._verify(state, draft, draws, length, cond, state.anchor_x0 if self.drafter.refreshes else None)

    def replay(self, state: RoundState, predraft: tuple[Draft, Draws], cond: Cond) -> RoundState:
        """Verify the first steps of a pre-drafted chain, as many as are handed in."""
        draft, draws = predraft
        length = torch.where(state.k < self.chain.process.num_steps, draws.noise.shape[1], 0)  # idle rows keep nothing
        return self._verify(state, draft, draws, length, cond, None)

    def _verify(
        self, state: RoundState, draft: Draft, draws: Draws, length: Tensor, cond: Cond, start_x0: Tensor | None
    ) -> RoundState:
        """One pass over the drafted states, and over the start unless the target's x̂0 there is ``start_x0``."""
        process, x = self.chain.process, state.x
        last = process.num_steps - 1
        running, k = state.k <= last, state.k.clamp(max=last)
        column = torch.arange(draws.noise.shape[1] + 1, device=k.device)
        where = (k[:, None] + column).clamp(max=last)  # shapes are static: columns beyond ``length`` are asked as well
        first = 0 if start_x0 is None else 1
        asked = draft.states[:, first:]
        owner = torch.arange(len(k), device=k.device)[:, None].expand(asked.shape[:2]).flatten()
        x0, finite = self._x0(asked.flatten(0, 1), where[:, first:].flatten(), gather_rows(cond, owner))
        target = x0.view_as(asked)
        if start_x0 is not None:
            target = torch.cat([start_x0[:, None], target], dim=1)
        fine = finite.view(asked.shape[:2]) | (column[first:] > length[:, None]) | ~running[:, None]
        settled = settle(process, k, draft, target, draws.noise, length, self.verifier, draws.uniform, draws.fresh)

        def kept(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(per_row(running, old), new, old)

        taken = settled.accepted
        numbers = torch.stack([kept(each, torch.full_like(k, -1)) for each in (k, length, taken)])
        leftover = state.leftover
        if leftover is not None:
            after = Leftover.after(draft.states, draft.x0, target, draws.noise, length, taken)
            leftover = after.width(leftover.noise.shape[1])
        trajectory, recorded = state.trajectory, state.x0
        if len(trajectory):
            visited = (column <= taken[:, None]) & running[:, None]
            row = torch.where(visited, where, len(trajectory) - 1)
            whose = torch.arange(len(k), device=k.device)[:, None].expand_as(row)
            trajectory = trajectory.index_put((row, whose), draft.states)
            recorded = recorded.index_put((row, whose), target)
        return RoundState(
            k=kept(k + taken + 1, state.k),
            x=kept(settled.x_next, x),
            anchor_k=kept(k + taken, state.anchor_k),
            anchor_x=kept(settled.x_end, state.anchor_x),
            anchor_x0=kept(settled.x0_end, state.anchor_x0),
            passes=state.passes + running,
            evaluations=state.evaluations + running * asked.shape[1],
            rounds=state.rounds + 1,
            # A round that ran ahead of a finished batch has no row of its own left: it writes −1 over the last one's
            # only if that is −1 already.
            log=_noted(state.log, numbers, state.rounds, running),
            finite=state.finite & fine.all(),
            trajectory=trajectory,
            x0=recorded,
            leftover=leftover,
        )

    def _x0(
        self, x: Float[Tensor, "n ..."], k: Int[Tensor, " n"], cond: Cond
    ) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, " n"]]:
        """One pass: the target's x̂0, and whether the network's output is finite."""
        process = self.chain.process
        output = self.denoiser(x.to(self.dtype), process.timesteps[k], cond)
        return process.x0(x, output.to(x.dtype), k), output.isfinite().flatten(1).all(dim=1)


def _noted(log: Tensor, numbers: Tensor, rounds: Tensor, running: Tensor) -> Tensor:
    row = rounds.clamp(max=log.shape[1] - 1)
    entry = torch.where(running.any(), numbers[:, None], log.index_select(1, row))
    return log.index_copy(1, row, entry)
