"""A round in static shapes: from state and random numbers to the next state, without a look at either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, gather_rows
from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart, UnverifiedTail
from specpolicy.speculative.initial_guess import X0Guess
from specpolicy.speculative.linear_chain import MultiStepTransition
from specpolicy.speculative.process import per_row
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.round import verify_window
from specpolicy.speculative.verifiers import Verifier


class RoundState(NamedTuple):
    """B chains on their way.

    Attributes:
        k, x: position, K when finished, and state of each chain.
        last_eval_k, last_eval_x, last_eval_x0: latest state at which an x̂0 is known.
        passes, evaluations: account of network use, ``(B,)``.
        rounds: rounds so far, ``(1,)``.
        log: position, drafted and accepted steps of each chain in each round, ``(3, R, B)``; −1 where there is none.
        finite: whether the network's output has always been finite, ``(1,)``.
        trajectory, x0: visited states and the target's x̂0 there, ``(K + 2, B, *event)`` with a last row for what is
            not to be kept; no rows at all if nothing is recorded.
        tail: of the last round, in windows of the longest one's width; None if the drafter does not recycle.
    """

    k: Int[Tensor, " b"]
    x: Float[Tensor, "b ..."]
    last_eval_k: Int[Tensor, " b"]
    last_eval_x: Float[Tensor, "b ..."]
    last_eval_x0: Float[Tensor, "b ..."]
    passes: Int[Tensor, " b"]
    evaluations: Int[Tensor, " b"]
    rounds: Int[Tensor, " 1"]
    log: Int[Tensor, "3 r b"]
    finite: Bool[Tensor, " 1"]
    trajectory: Float[Tensor, "k2 b ..."]
    x0: Float[Tensor, "k2 b ..."]
    tail: UnverifiedTail | None = None

    @staticmethod
    def start(
        x: Float[Tensor, "b ..."], steps: int, record: bool, recycled: int | None = None, chains: int | None = None
    ) -> RoundState:
        """Chains at pure noise ``x``, in the dtype of the states, before any pass.

        Args:
            x: one row a chain. steps: K. record: keep what was visited.
            recycled: the longest window that a round may leave something of; None keeps no tail.
            chains: the rows after so many only fill the batch, and are finished from the start; None: there are none.
        """
        batch, rows = len(x), steps + 2 if record else 0
        nobody = torch.zeros(batch, dtype=torch.long, device=x.device)
        k = nobody.clone()
        k[batch if chains is None else chains :] = steps
        return RoundState(
            k=k,
            x=x.clone(),
            last_eval_k=nobody,
            last_eval_x=x.clone(),
            last_eval_x0=torch.zeros_like(x),
            passes=nobody.clone(),
            evaluations=nobody.clone(),
            rounds=torch.zeros(1, dtype=torch.long, device=x.device),
            log=torch.full(
                (3, steps, batch), -1, dtype=torch.long, device=x.device
            ),  # every round makes at least one step
            finite=torch.ones(1, dtype=torch.bool, device=x.device),
            trajectory=x.new_zeros((rows, *x.shape)),
            x0=x.new_zeros((rows, *x.shape)),
            tail=None if recycled is None else UnverifiedTail.none(x, recycled),
        )

    def result(self, dtype: torch.dtype, replayed: bool, chains: int) -> SampleResult:
        """Samples and account of the first ``chains``, in tensors of their own; ``dtype`` is that of the noise."""
        # A window that was replayed may have been followed by rounds that ran ahead: those did nothing.
        log = self.log[:, :, :chains].cpu()
        steps, log = log.shape[1], log[:, (log[0] >= 0).any(dim=1)]
        recorded = len(self.trajectory) > 0
        trajectory = torch.cat([self.trajectory[:-2, :chains], self.x[None, :chains]]) if recorded else None
        return SampleResult.of_rounds(
            steps,
            self.k[:chains],
            sample=self.x[:chains].to(dtype, copy=True),
            passes=self.passes[:chains].cpu().clone(),
            evaluations=self.evaluations[:chains].cpu().clone(),
            start=log[0],
            proposed=log[1],
            accepted=log[2],
            replayed=log[2, 0].clone() if replayed else None,
            trajectory=trajectory,
            x0=self.x0[:-2, :chains].clone() if recorded else None,
        )


class RoundNoise(NamedTuple):
    """The random numbers of one round.

    Attributes:
        noise: to draft with, ``(B, w, *event)``. fresh: for the step after the accepted ones, ``(B, *event)``.
        uniform: in [0, 1), ``(B, w + 1)``; one for each drafted step and one for the repair.
    """

    noise: Float[Tensor, "b w ..."]
    uniform: Float64[Tensor, "b w1"]
    fresh: Float[Tensor, "b ..."]


@dataclass(frozen=True, eq=False)
class FixedShapeRound:
    """What the rounds of one sampler and one network have in common.

    Attributes:
        chain: the process and its products, on the states' device and in their dtype.
        denoiser: the network. dtype: what it is called with.
        drafter, verifier, initial_guess: of the sampler.
        table: steps to draft from each position, shape ``(K,)``.
    """

    chain: MultiStepTransition
    denoiser: Denoiser
    dtype: torch.dtype
    drafter: Drafter
    verifier: Verifier
    initial_guess: X0Guess | None
    table: Int[Tensor, " k"]

    def begin(self, state: RoundState, _: None, cond: Cond) -> RoundState:
        """The x̂0 that the first round drafts with: the initial guess's, or the target's for one pass."""
        if self.drafter.refreshes:
            return state  # every round begins with a pass of its own
        if self.initial_guess is not None:
            return state._replace(last_eval_x0=self.initial_guess.x0(state.x, cond).to(state.x.dtype))
        # Rows that only fill the batch stand behind the last step, where there is nothing to ask.
        x0, finite = self._x0(state.x, state.k.clamp(max=self.chain.process.num_steps - 1), cond)
        return state._replace(
            last_eval_x0=x0,
            passes=state.passes + 1,
            evaluations=state.evaluations + 1,
            finite=state.finite & finite.all(),
        )

    def advance(self, state: RoundState, draws: RoundNoise, cond: Cond) -> RoundState:
        """Draft as many steps as ``draws`` has noise for, verify them in one pass, and go on."""
        last, width = self.chain.process.num_steps - 1, draws.noise.shape[1]
        running, k = state.k <= last, state.k.clamp(max=last)  # finished chains stand at K, and take part idly
        length = torch.where(running, self.table[k], 0).clamp(max=width)
        if self.drafter.refreshes:
            x0, finite = self._x0(state.x, k, cond)
            state = state._replace(
                last_eval_k=k,
                last_eval_x=state.x.clone(),
                last_eval_x0=x0,
                passes=state.passes + running,
                evaluations=state.evaluations + running,
                finite=state.finite & (finite | ~running).all(),
            )
        if state.tail is not None:
            draws = draws._replace(noise=state.tail.noises(draws.noise))
        anchor = (state.last_eval_k, state.last_eval_x, state.last_eval_x0)
        draft = self.drafter.draft(DraftStart(self.chain, k, state.x, *anchor, draws.noise, cond, state.tail))
        return self._verify(state, draft, draws, length, cond, state.last_eval_x0 if self.drafter.refreshes else None)

    def replay(self, state: RoundState, predraft: tuple[Draft, RoundNoise], cond: Cond) -> RoundState:
        """Verify the first steps of a pre-drafted chain, as many as are handed in."""
        draft, draws = predraft
        length = torch.where(state.k < self.chain.process.num_steps, draws.noise.shape[1], 0)  # idle rows keep nothing
        return self._verify(state, draft, draws, length, cond, None)

    def _verify(
        self, state: RoundState, draft: Draft, draws: RoundNoise, length: Tensor, cond: Cond, start_x0: Tensor | None
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
        settled = verify_window(
            process, k, draft, target, draws.noise, length, self.verifier, draws.uniform, draws.fresh
        )

        def kept(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(per_row(running, old), new, old)

        taken = settled.accepted
        numbers = torch.stack([kept(each, torch.full_like(k, -1)) for each in (k, length, taken)])
        tail = state.tail
        if tail is not None:
            after = UnverifiedTail.after(draft.states, draft.x0, target, draws.noise, length, taken)
            tail = after.width(tail.noise.shape[1])
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
            last_eval_k=kept(k + taken, state.last_eval_k),
            last_eval_x=kept(settled.x_end, state.last_eval_x),
            last_eval_x0=kept(settled.x0_end, state.last_eval_x0),
            passes=state.passes + running,
            evaluations=state.evaluations + running * asked.shape[1],
            rounds=state.rounds + 1,
            # A round that ran ahead of a finished batch has no row of its own left: it writes −1 over the last one's
            # only if that is −1 already.
            log=_noted(state.log, numbers, state.rounds, running),
            finite=state.finite & fine.all(),
            trajectory=trajectory,
            x0=recorded,
            tail=tail,
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
