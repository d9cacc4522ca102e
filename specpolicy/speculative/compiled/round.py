"""Rounds in fixed shapes: all chains take part, finished ones idly, and the host reads no number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, gather_rows
from specpolicy.speculative.drafters.base import Draft
from specpolicy.speculative.process import per_row
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.round import ChainState, RoundNoise, RoundOutcome, SpeculativeRound


class CompiledState(NamedTuple):
    """B chains on their way, with everything that is kept of them.

    Attributes:
        chains: where they are; K is the position of a finished chain.
        passes, evaluations: sequential network evaluations, and rows computed, ``(B,)``.
        rounds: rounds so far, ``(1,)``.
        log: position, drafted and accepted steps of each chain in each round, ``(3, R, B)``; −1 where there is none.
        finite: whether the network's output has always been finite, ``(1,)``.
        trajectory, x0: visited states and the target's x̂0 there, ``(K + 2, B, *event)`` with a last row for what is
            not to be kept; no rows at all if nothing is recorded.
    """

    chains: ChainState
    passes: Int[Tensor, " b"]
    evaluations: Int[Tensor, " b"]
    rounds: Int[Tensor, " 1"]
    log: Int[Tensor, "3 r b"]
    finite: Bool[Tensor, " 1"]
    trajectory: Float[Tensor, "k2 b ..."]
    x0: Float[Tensor, "k2 b ..."]

    @staticmethod
    def start(
        x: Float[Tensor, "b ..."], steps: int, record: bool, tail_width: int | None = None, chains: int | None = None
    ) -> CompiledState:
        """Put chains at pure noise, before any evaluation.

        Args:
            x: one row a chain, in the dtype of the states, shape ``(B, *event)``.
            steps: K.
            record: keep what was visited.
            tail_width: longest window whose unverified tail is kept; None keeps none.
            chains: the rows after so many only fill the batch, and are finished from the start; None: there are none.

        Returns:
            The state; its tensors are its own.
        """
        batch, rows = len(x), steps + 2 if record else 0
        nothing = torch.zeros(batch, dtype=torch.long, device=x.device)
        k = nothing.clone()
        k[batch if chains is None else chains :] = steps
        state = ChainState.start(x, k, tail_width)
        return CompiledState(
            chains=state._replace(last_eval_k=nothing.clone()),
            passes=nothing,
            evaluations=nothing.clone(),
            rounds=torch.zeros(1, dtype=torch.long, device=x.device),
            # Every round makes at least one step.
            log=torch.full((3, steps, batch), -1, dtype=torch.long, device=x.device),
            finite=torch.ones(1, dtype=torch.bool, device=x.device),
            trajectory=x.new_zeros((rows, *x.shape)),
            x0=x.new_zeros((rows, *x.shape)),
        )

    def result(self, dtype: torch.dtype, replayed: bool, chains: int) -> SampleResult:
        """Copy out the samples and what they cost.

        Args:
            dtype: of the noise that was handed in.
            replayed: whether the first round verified a pre-draft.
            chains: how many rows are chains; the rest fills the batch.

        Returns:
            The result, in tensors of its own.
        """
        # A window that was replayed may have been followed by rounds that ran ahead: those did nothing.
        log = self.log[:, :, :chains].cpu()
        steps, log = log.shape[1], log[:, (log[0] >= 0).any(dim=1)]
        recorded = len(self.trajectory) > 0
        trajectory = torch.cat([self.trajectory[:-2, :chains], self.chains.x[None, :chains]]) if recorded else None
        return SampleResult.of_rounds(
            steps,
            self.chains.k[:chains],
            sample=self.chains.x[:chains].to(dtype, copy=True),
            passes=self.passes[:chains].cpu().clone(),
            evaluations=self.evaluations[:chains].cpu().clone(),
            start=log[0],
            proposed=log[1],
            accepted=log[2],
            replayed=log[2, 0].clone() if replayed else None,
            trajectory=trajectory,
            x0=self.x0[:-2, :chains].clone() if recorded else None,
        )


@dataclass(frozen=True, eq=False)
class FixedShapeRound:
    """The rounds of one sampler and one network, as functions from state and random numbers to the next state.

    Attributes:
        rounds: one round of the sampler, on the device and in the dtype of the states.
        denoiser: the network.
        dtype: what it is called with.
        table: steps to draft from each position, shape ``(K,)``.
    """

    rounds: SpeculativeRound
    denoiser: Denoiser
    dtype: torch.dtype
    table: Int[Tensor, " k"]

    def begin(self, state: CompiledState, _: None, cond: Cond) -> CompiledState:
        """Find the x̂0 that the first round drafts with: the initial guess, or one network evaluation.

        Args:
            state: at pure noise.
            cond: conditions of the chains.

        Returns:
            The state with its x̂0.
        """
        if self.rounds.drafter.refreshes:
            return state  # every round begins with an evaluation of its own
        chains = state.chains
        if self.rounds.initial_guess is not None:
            guessed = self.rounds.guess(chains, cond).last_eval_x0
            return state._replace(chains=chains._replace(last_eval_x0=guessed))
        # Rows that only fill the batch stand behind the last step, where there is nothing to evaluate.
        x0, finite = self._x0(chains.x, chains.k.clamp(max=self.rounds.process.num_steps - 1), cond)
        return state._replace(
            chains=chains._replace(last_eval_x0=x0),
            passes=state.passes + 1,
            evaluations=state.evaluations + 1,
            finite=state.finite & finite.all(),
        )

    def advance(self, state: CompiledState, draws: RoundNoise, cond: Cond) -> CompiledState:
        """Draft as many steps as there is noise for, verify them in one network evaluation, and go on.

        Args:
            state: chains with a known x̂0.
            draws: random numbers for all chains.
            cond: conditions of the chains.

        Returns:
            The state after the round.
        """
        chains, running = self._unfinished(state)
        length = torch.where(running, self.table[chains.k], 0).clamp(max=draws.noise.shape[1])
        refreshes = self.rounds.drafter.refreshes
        if refreshes:
            x0, finite = self._x0(chains.x, chains.k, cond)
            chains = chains._replace(last_eval_k=chains.k, last_eval_x=chains.x.clone(), last_eval_x0=x0)
            state = state._replace(
                passes=state.passes + running,
                evaluations=state.evaluations + running,
                finite=state.finite & (finite | ~running).all(),
            )
        draft, noise, length = self.rounds.draft(chains, draws.noise, length, cond)
        draws = draws._replace(noise=noise)
        return self._verify(state, chains, running, draft, draws, length, cond, refreshes)

    def replay(self, state: CompiledState, predraft: tuple[Draft, RoundNoise], cond: Cond) -> CompiledState:
        """Verify the first steps of a pre-drafted chain, as many as are handed in.

        Args:
            state: at pure noise.
            predraft: its first steps, and the numbers that verify them.
            cond: conditions of the chains.

        Returns:
            The state after the round.
        """
        draft, draws = predraft
        chains, running = self._unfinished(state)
        length = torch.where(running, draws.noise.shape[1], 0)  # idle rows keep nothing
        return self._verify(state, chains, running, draft, draws, length, cond, False)

    def _unfinished(self, state: CompiledState) -> tuple[ChainState, Bool[Tensor, " b"]]:
        """The chains with finished ones put back to the last step, and which are not finished."""
        last = self.rounds.process.num_steps - 1
        return state.chains._replace(k=state.chains.k.clamp(max=last)), state.chains.k <= last

    def _verify(
        self,
        state: CompiledState,
        chains: ChainState,
        running: Bool[Tensor, " b"],
        draft: Draft,
        draws: RoundNoise,
        length: Int[Tensor, " b"],
        cond: Cond,
        start_known: bool,
    ) -> CompiledState:
        """Evaluate all drafted states, and the start unless its x̂0 is known; verify them and keep what they lead to."""
        last = self.rounds.process.num_steps - 1
        column = torch.arange(draft.states.shape[1], device=length.device)
        where = (chains.k[:, None] + column).clamp(max=last)  # shapes are fixed: padding is evaluated as well
        first = int(start_known)
        states = draft.states[:, first:]
        owner = torch.arange(len(length), device=length.device)[:, None].expand(states.shape[:2]).flatten()
        x0, finite = self._x0(states.flatten(0, 1), where[:, first:].flatten(), gather_rows(cond, owner))
        target_x0 = x0.view_as(states)
        if start_known:
            target_x0 = torch.cat([chains.last_eval_x0[:, None], target_x0], dim=1)
        fine = finite.view(states.shape[:2]) | (column[first:] > length[:, None]) | ~running[:, None]
        after, outcome = self.rounds.verify(chains, draft, target_x0, length, draws)
        trajectory, recorded = self._record(state, running, where, column, outcome)
        return CompiledState(
            chains=self._merge(running, after, state.chains),
            passes=state.passes + running,
            evaluations=state.evaluations + running * states.shape[1],
            rounds=state.rounds + 1,
            log=_logged(state, outcome, running),
            finite=state.finite & fine.all(),
            trajectory=trajectory,
            x0=recorded,
        )

    def _merge(self, running: Bool[Tensor, " b"], after: ChainState, before: ChainState) -> ChainState:
        """Running chains after the round, finished ones as they were; tails as wide as before."""

        def kept(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(per_row(running, old), new, old)

        tail = None
        if after.tail is not None and before.tail is not None:
            tail = after.tail.width(before.tail.noise.shape[1])
        return before._replace(
            k=kept(after.k, before.k),
            x=kept(after.x, before.x),
            last_eval_k=kept(after.last_eval_k, before.last_eval_k),
            last_eval_x=kept(after.last_eval_x, before.last_eval_x),
            last_eval_x0=kept(after.last_eval_x0, before.last_eval_x0),
            tail=tail,
        )

    def _record(
        self, state: CompiledState, running: Tensor, where: Tensor, column: Tensor, outcome: RoundOutcome
    ) -> tuple[Tensor, Tensor]:
        """Trajectory and x̂0 with what the round has added."""
        trajectory, recorded = state.trajectory, state.x0
        if not len(trajectory):
            return trajectory, recorded
        visited = (column <= outcome.accepted[:, None]) & running[:, None]
        row = torch.where(visited, where, len(trajectory) - 1)
        whose = torch.arange(len(running), device=row.device)[:, None].expand_as(row)
        return (
            trajectory.index_put((row, whose), outcome.states),
            recorded.index_put((row, whose), outcome.target_x0),
        )

    def _x0(
        self, x: Float[Tensor, "n ..."], k: Int[Tensor, " n"], cond: Cond
    ) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, " n"]]:
        """One network evaluation: the target's x̂0, and whether the network's output is finite."""
        process = self.rounds.process
        output = self.denoiser(x.to(self.dtype), process.timesteps[k], cond)
        return process.x0(x, output.to(x.dtype), k), output.isfinite().flatten(1).all(dim=1)


def _logged(state: CompiledState, outcome: RoundOutcome, running: Tensor) -> Tensor:
    """The log with one more round.

    A round that ran ahead of a finished batch has no row of its own left: it writes −1 over the last one's only if that
    is −1 already.
    """
    numbers = torch.stack([outcome.k, outcome.length, outcome.accepted])
    numbers = torch.where(running, numbers, -1)
    row = state.rounds.clamp(max=state.log.shape[1] - 1)
    entry = torch.where(running.any(), numbers[:, None], state.log.index_select(1, row))
    return state.log.index_copy(1, row, entry)
