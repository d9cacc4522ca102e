"""A batch of chains, each at its own position, and what has been done with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, call_denoiser, gather_rows, prepared
from specpolicy.speculative.drafters.base import Draft
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.round import ChainState, RoundNoise, RoundOutcome, SpeculativeRound
from specpolicy.speculative.window import WindowSchedule


class StateBuffer:
    """Keeps states from the reader's position on and drops those before it.

    Chains of a batch are at different positions: a state waits here until the slowest chain has reached it. Instead of
    K + 1 events a chain it holds as many as the fastest chain is ahead.
    """

    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}
        self._chains: dict[int, Tensor] = {}
        self._reader = 0

    def keep(self, where: Int[Tensor, " m"], chain: Int[Tensor, " m"], states: Float[Tensor, "m ..."]) -> None:
        """Keep m states.

        Args:
            where: position of each, shape ``(m,)``.
            chain: which chain each belongs to, shape ``(m,)``.
            states: shape ``(m, *event)``.
        """
        for position in torch.unique(where).tolist():
            if position < self._reader:
                continue
            here = where == position
            if position in self._states:
                self._chains[position] = torch.cat([self._chains[position], chain[here]])
                self._states[position] = torch.cat([self._states[position], states[here]])
            else:
                self._chains[position], self._states[position] = chain[here], states[here]

    def take(self, position: int, latest: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the states of all chains at ``position``, and drop those before it.

        Args:
            position: one that every chain has reached.
            latest: present states of all chains, shape ``(B, *event)``; those that are just there are not kept yet.

        Returns:
            Shape ``(B, *event)``.
        """
        self._reader = position
        for old in [each for each in self._states if each < position]:
            del self._states[old], self._chains[old]
        if position not in self._states:
            return latest.clone()  # the chains go on in place
        return latest.index_copy(0, self._chains[position], self._states[position])


@dataclass
class RoundLog:
    """What the rounds did, in their order; one row ``(B,)`` a round.

    Attributes:
        start: position at which each chain began the round.
        proposed: drafted steps that were verified.
        accepted: how many of them were accepted.
    """

    start: list[Tensor] = field(default_factory=list)
    proposed: list[Tensor] = field(default_factory=list)
    accepted: list[Tensor] = field(default_factory=list)

    def add(self, active: Tensor, start: Tensor, proposed: Tensor, accepted: Tensor, batch: int) -> None:
        """Add one round; chains that took no part get −1.

        Args:
            active: rows of those that did, shape ``(n,)``.
            start: position at which each of them began, shape ``(n,)``.
            proposed: drafted steps of each, shape ``(n,)``.
            accepted: accepted steps of each, shape ``(n,)``.
            batch: B, all chains.
        """
        for rows, value in ((self.start, start), (self.proposed, proposed), (self.accepted, accepted)):
            row = torch.full((batch,), -1, dtype=torch.long)
            row[active.cpu()] = value.cpu()
            rows.append(row)

    def stacked(self, batch: int) -> dict[str, Tensor]:
        """Stack each list.

        Args:
            batch: B, all chains.

        Returns:
            Tensors ``(rounds, B)`` under their names in a :class:`SampleResult`.
        """
        none = torch.empty((0, batch), dtype=torch.long)
        return {name: torch.stack(rows) if rows else none for name, rows in vars(self).items()}


class ChainBatch:
    """B chains on their way from noise to sample, advanced by rounds in which only the needed rows are evaluated.

    Args:
        rounds: one round of the sampler, on the device and in the dtype of the states.
        denoiser: the network; called in the dtype of ``noise``.
        noise: states that the chains start from, shape ``(B, *event)``.
        cond: conditions with leading dimension B.
        begin: position at which all chains start.
        record: keep all states and x̂0.
        measure: keep the error of each draft, for windows that adapt to it.
        state_buffer: keeps states for a reader that follows the rounds.

    Attributes:
        state: where the chains are.
        passes, evaluations: sequential network evaluations of each chain, and rows computed for it, shape ``(B,)``.
        log: what the rounds did.
        replayed: whether the first round verified a pre-draft.
    """

    def __init__(
        self,
        rounds: SpeculativeRound,
        denoiser: Denoiser,
        noise: Float[Tensor, "b ..."],
        cond: Cond,
        *,
        begin: int = 0,
        record: bool = False,
        measure: bool = False,
        state_buffer: StateBuffer | None = None,
    ) -> None:
        self.rounds, self.process, self.denoiser = rounds, rounds.process, denoiser
        self.cond = prepared(denoiser, cond)
        self.input_dtype, steps = noise.dtype, self.process.num_steps
        k = torch.full((len(noise),), begin, dtype=torch.long, device=noise.device)
        tail_width = 0 if rounds.drafter.recycles else None
        self.state = ChainState.start(noise.to(self.process.a.dtype), k, tail_width, measure)
        self.passes, self.evaluations = torch.zeros_like(k), torch.zeros_like(k)
        self.log, self.replayed, self.state_buffer = RoundLog(), False, state_buffer
        self.trajectory = self.x.new_empty((steps + 1, *self.x.shape)) if record else None
        self.recorded_x0 = self.x.new_empty((steps, *self.x.shape)) if record else None
        if self.trajectory is not None:
            self.trajectory[0] = self.x

    @property
    def k(self) -> Int[Tensor, " b"]:
        """Position of each chain; K when it has finished."""
        return self.state.k

    @property
    def x(self) -> Float[Tensor, "b ..."]:
        """State of each chain, in float32 or better."""
        return self.state.x

    def active(self) -> Int[Tensor, " n"]:
        """Return the rows of the chains that have not finished."""
        return (self.k < self.process.num_steps).nonzero().squeeze(1)

    def advance(self, active: Int[Tensor, " n"], schedule: WindowSchedule, random: ChainGenerators) -> None:
        """Draft, verify, and move chains on by the accepted steps and one more.

        Args:
            active: rows of the unfinished chains, shape ``(n,)``.
            schedule: how many steps to draft from where they are.
            random: the chains' random numbers.

        Raises:
            DenoiserError: the network returned NaN, infinity or another shape.
        """
        rounds, (state, cond) = self.rounds, self._select(active)
        first = not self.log.start
        start_known = rounds.drafter.refreshes if not first else rounds.initial_guess is None
        if start_known:
            here = torch.ones((len(active), 1), dtype=torch.bool, device=active.device)
            state = state.evaluated(self._evaluate(active, cond, state.x[:, None], state.k, here)[:, 0])
        elif first:
            state = rounds.guess(state, cond)
        length = schedule(state)
        event, order, drawn = self.x.shape[1:], active.tolist(), length.tolist()
        draws = RoundNoise(
            noise=random.window_noise(drawn, event, order),
            uniform=random.window_uniform(drawn, order),
            fresh=random.noise(event, order),
        )
        draft, noise, length = rounds.draft(state, draws.noise, length, cond)
        self._verify(active, state, draft, length, draws._replace(noise=noise), cond, start_known)

    def replay(self, predraft: PreDraft, steps: int, random: ChainGenerators) -> None:
        """Verify the first steps of a pre-drafted chain in one network evaluation, as if they had just been drafted.

        Args:
            predraft: drafted from the states at which all chains are now; its noises are independent of the condition.
            steps: how many of its steps to verify.
            random: the chains' random numbers.

        Raises:
            DenoiserError: the network returned NaN, infinity or another shape.
        """
        active = self.active()
        drawn, order = [steps] * len(active), active.tolist()
        uniform = random.window_uniform(drawn, order)
        fresh = random.noise(self.x.shape[1:], order)
        draft = Draft(predraft.states[: steps + 1].transpose(0, 1), predraft.x0[:steps].transpose(0, 1))
        draws = RoundNoise(predraft.noise[:steps].transpose(0, 1), uniform, fresh)
        state, cond = self._select(active)
        self._verify(active, state, draft, torch.full_like(active, steps), draws, cond, False)
        self.replayed = True

    def result(self) -> SampleResult:
        """Return the samples and what they cost; the trajectory only once all chains have finished."""
        finished = not len(self.active())
        if self.trajectory is not None:
            self.trajectory[-1] = self.x
        return SampleResult.of_rounds(
            self.process.num_steps,
            self.k,
            sample=self.x.to(self.input_dtype, copy=True),
            passes=self.passes.cpu(),
            evaluations=self.evaluations.cpu(),
            **self.log.stacked(len(self.x)),
            replayed=self.log.accepted[0] if self.replayed else None,
            trajectory=self.trajectory if finished else None,
            x0=self.recorded_x0 if finished else None,
        )

    def _select(self, active: Tensor) -> tuple[ChainState, Cond]:
        """State and condition of the active chains."""
        if len(active) == len(self.x):
            return self.state, self.cond
        return self.state.rows(active), gather_rows(self.cond, active)

    def _verify(
        self,
        active: Tensor,
        state: ChainState,
        draft: Draft,
        length: Tensor,
        draws: RoundNoise,
        cond: Cond,
        start_known: bool,
    ) -> None:
        """Evaluate a draft where that is needed, verify it, and keep what it has led to."""
        column = torch.arange(draft.states.shape[1], device=length.device)
        needed = (column <= length[:, None]) & (column >= int(start_known))
        target_x0 = self._evaluate(active, cond, draft.states, state.k, needed, state.last_eval_x0)
        if length.any():
            after, outcome = self.rounds.verify(state, draft, target_x0, length, draws)
        else:
            after, outcome = self.rounds.step(state, draft, target_x0, draws)
        self._record(active, outcome)
        self.log.add(active, outcome.k, outcome.length, outcome.accepted, len(self.x))
        self.state = after if len(active) == len(self.x) else self.state.with_rows(active, after)

    def _evaluate(
        self,
        active: Tensor,
        cond: Cond,
        states: Float[Tensor, "n w ..."],
        k: Int[Tensor, " n"],
        needed: Bool[Tensor, "n w"],
        otherwise: Float[Tensor, "n ..."] | None = None,
    ) -> Float[Tensor, "n w ..."]:
        """The target's x̂0 at the needed states from ``k`` on, in one network evaluation; elsewhere ``otherwise``."""
        x0 = (states if otherwise is None else otherwise[:, None].expand_as(states)).clone()
        row, column = needed.nonzero(as_tuple=True)
        if len(row):
            x, at = states[row, column], k[row] + column
            output = call_denoiser(
                self.denoiser, x.to(self.input_dtype), self.process.timesteps[at], gather_rows(cond, row)
            )
            x0[row, column] = self.process.x0(x, output.to(x.dtype), at)
            self.passes[active] += needed.any(dim=1)
            self.evaluations[active] += needed.sum(dim=1)
        return x0

    def _record(self, active: Tensor, outcome: RoundOutcome) -> None:
        """Keep the states that have become part of the chains, and the x̂0 there."""
        if self.state_buffer is None and self.trajectory is None:
            return
        column = torch.arange(outcome.states.shape[1], device=active.device)
        row, column = (column <= outcome.accepted[:, None]).nonzero(as_tuple=True)
        where, chain, states = outcome.k[row] + column, active[row], outcome.states[row, column]
        if self.state_buffer is not None:
            self.state_buffer.keep(where, chain, states)
        if self.trajectory is not None and self.recorded_x0 is not None:
            self.trajectory[where, chain] = states
            self.recorded_x0[where, chain] = outcome.target_x0[row, column]
