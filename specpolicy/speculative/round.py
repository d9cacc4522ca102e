"""One round of speculation: draft a window, verify it against the target's x̂0, make one more step.

A :class:`SpeculativeRound` reads no number on the host, so that the same code runs eagerly, compiled and captured as a
CUDA graph. The network is evaluated between :meth:`SpeculativeRound.draft` and :meth:`SpeculativeRound.verify`: eagerly
on the rows that are needed (:class:`~specpolicy.speculative.chain_batch.ChainBatch`), in fixed shapes on all of them
(:mod:`specpolicy.speculative.compiled`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, raw_condition
from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart, UnverifiedTail, within_bounds
from specpolicy.speculative.initial_guess import X0Guess
from specpolicy.speculative.linear_chain import MultiStepTransition
from specpolicy.speculative.process import ReverseProcess, per_row
from specpolicy.speculative.verifiers import DraftTargetGap, Rejection, Verifier

X0_BOUND = 1e6
"""Unclipped x̂0 of ε-networks reach 1/√ᾱ, about 1e4 at the first timesteps of a cosine schedule."""


class ChainState(NamedTuple):
    """Where n chains are between two rounds, one row a chain.

    Attributes:
        k: position of each chain, K when it has finished; shape ``(n,)``.
        x: its state, shape ``(n, *event)``.
        last_eval_k, last_eval_x, last_eval_x0: position, state and x̂0 of the latest evaluation of the target (or of
            the initial guess, in a first round); ``last_eval_k`` is −1 before the first.
        tail: what the last round evaluated and did not reach; None unless the drafter recycles.
        draft_x0_error, draft_x0_error_from: distance from the drafter's x̂0 to the target's at ``last_eval_k``,
            infinite before the first comparison, and the position of the x̂0 that the draft was made from, both
            ``(n,)``; None unless the windows adapt.
    """

    k: Int[Tensor, " n"]
    x: Float[Tensor, "n ..."]
    last_eval_k: Int[Tensor, " n"]
    last_eval_x: Float[Tensor, "n ..."]
    last_eval_x0: Float[Tensor, "n ..."]
    tail: UnverifiedTail | None = None
    draft_x0_error: Float64[Tensor, " n"] | None = None
    draft_x0_error_from: Int[Tensor, " n"] | None = None

    @staticmethod
    def start(
        x: Float[Tensor, "n ..."], k: Int[Tensor, " n"], tail_width: int | None = None, measure: bool = False
    ) -> ChainState:
        """Put chains at ``x``, before any evaluation.

        Args:
            x: states, in the dtype that chains are computed in, shape ``(n, *event)``.
            k: their positions, shape ``(n,)``.
            tail_width: longest window whose unverified tail is kept; None keeps none.
            measure: whether to keep ``draft_x0_error``.

        Returns:
            The state; its tensors are its own.
        """
        return ChainState(
            k=k.clone(),
            x=x.clone(),
            last_eval_k=torch.full_like(k, -1),
            last_eval_x=x.clone(),
            last_eval_x0=torch.zeros_like(x),
            tail=None if tail_width is None else UnverifiedTail.none(x, tail_width),
            draft_x0_error=torch.full_like(k, torch.inf, dtype=torch.float64) if measure else None,
            draft_x0_error_from=torch.zeros_like(k) if measure else None,
        )

    def evaluated(self, x0: Float[Tensor, "n ..."]) -> ChainState:
        """Take ``x0`` for the x̂0 at the present states.

        Args:
            x0: shape ``(n, *event)``.

        Returns:
            The same chains, with their last evaluation here.
        """
        return self._replace(last_eval_k=self.k, last_eval_x=self.x, last_eval_x0=x0)

    def rows(self, which: Int[Tensor, " m"]) -> ChainState:
        """Select some of the chains.

        Args:
            which: their rows, shape ``(m,)``.

        Returns:
            Their state.
        """
        tail = None if self.tail is None else self.tail.rows(which)
        rest = {
            name: part[which]
            for name, part in self._asdict().items()
            if name != "tail" and part is not None
        }  # fmt: skip
        return ChainState(**rest, tail=tail)

    def with_rows(self, which: Int[Tensor, " m"], new: ChainState) -> ChainState:
        """Write the state of some chains over what is here, in place.

        Args:
            which: their rows, shape ``(m,)``; the other chains have finished and need no tail.
            new: their state.

        Returns:
            This state, with a tail as wide as the new one.
        """
        tail = None
        if new.tail is not None:
            tail = UnverifiedTail.none(self.x, new.tail.noise.shape[1])
            for whole, part in zip(tail, new.tail, strict=True):
                whole[which] = part
        for name, part in self._asdict().items():
            if name != "tail" and part is not None:
                part[which] = getattr(new, name)
        return self._replace(tail=tail)


class RoundNoise(NamedTuple):
    """Random numbers of one round for n chains and windows of up to w steps.

    Attributes:
        noise: standard normal, to draft with, shape ``(n, w, *event)``.
        uniform: in [0, 1), one for each drafted step and one for the repair, shape ``(n, w + 1)``.
        fresh: standard normal, for the step after the accepted ones, shape ``(n, *event)``.
    """

    noise: Float[Tensor, "n w ..."]
    uniform: Float64[Tensor, "n w1"]
    fresh: Float[Tensor, "n ..."]


class RoundOutcome(NamedTuple):
    """What a round did with n chains.

    Attributes:
        k: position at which it began, shape ``(n,)``.
        length, accepted: drafted steps that counted, and how many of them were accepted, shape ``(n,)``.
        states, target_x0: states from ``k`` on and the target's x̂0 there, shape ``(n, w + 1, *event)``; the first
            ``accepted + 1`` columns are part of the chain.
    """

    k: Int[Tensor, " n"]
    length: Int[Tensor, " n"]
    accepted: Int[Tensor, " n"]
    states: Float[Tensor, "n w1 ..."]
    target_x0: Float[Tensor, "n w1 ..."]


@dataclass(frozen=True, eq=False)
class SpeculativeRound:
    """The rounds of one sampler, on one device and in one dtype.

    Attributes:
        transition: the process and its multi-step products, on the device and in the dtype of the states.
        drafter, verifier, initial_guess: of the sampler.
    """

    transition: MultiStepTransition
    drafter: Drafter
    verifier: Verifier
    initial_guess: X0Guess | None = None

    @property
    def process(self) -> ReverseProcess:
        """The process that is sampled."""
        return self.transition.process

    def guess(self, state: ChainState, cond: Cond) -> ChainState:
        """Take the initial guess for the x̂0 of chains that start.

        Args:
            state: n chains, unevaluated.
            cond: their conditions.

        Returns:
            The chains with the guess as their last evaluation, 0 where it is not finite or far out of bounds; unchanged
            without an initial guess.
        """
        if self.initial_guess is None:
            return state
        x0 = self.initial_guess.x0(state.x, raw_condition(cond)).to(state.x.dtype)
        sound = within_bounds(x0.flatten(1)[:, None], state.x)[:, 0]
        return state.evaluated(torch.where(per_row(sound, x0), x0, 0.0))

    def draft(
        self, state: ChainState, noise: Float[Tensor, "n w ..."], length: Int[Tensor, " n"], cond: Cond
    ) -> tuple[Draft, Float[Tensor, "n w ..."], Int[Tensor, " n"]]:
        """Draft windows from where the chains are.

        Args:
            state: n unfinished chains with a known x̂0.
            noise: fresh noises, shape ``(n, w, *event)``; those of an unverified tail come first.
            length: steps to draft, shape ``(n,)``, at most w and at most K − 1 − k.
            cond: conditions of the chains.

        Returns:
            The draft; the noises that it was made with; and its length. A draft ends before a step whose x̂0 is not
            finite or far out of bounds: that costs evaluations, never a sample.
        """
        if state.tail is not None:
            noise = state.tail.noises(noise)
        last_eval = (state.last_eval_k, state.last_eval_x, state.last_eval_x0)
        seen = raw_condition(cond)
        draft = self.drafter.draft(DraftStart(self.transition, state.k, state.x, *last_eval, noise, seen, state.tail))
        # Each x̂0 is known before the noise of its step, so that a length found from it keeps the sampler exact.
        sound = within_bounds(draft.x0.flatten(2), state.x, X0_BOUND).expand(-1, noise.shape[1])
        return draft, noise, torch.minimum(length, sound.cumprod(dim=1).sum(dim=1))

    def verify(
        self,
        state: ChainState,
        draft: Draft,
        target_x0: Float[Tensor, "n w1 ..."],
        length: Int[Tensor, " n"],
        draws: RoundNoise,
    ) -> tuple[ChainState, RoundOutcome]:
        """Keep what the verifier accepts of a draft, and make one more step of the target.

        Args:
            state: n chains, where they were drafted from.
            draft: from there on.
            target_x0: the target's x̂0 at the drafted states, shape ``(n, w + 1, *event)``; columns beyond ``length``
                do not count.
            length: drafted steps that count, shape ``(n,)``, at most K − 1 − k, so that the one more step is still in
                the chain.
            draws: ``noise`` is what the draft was made with.

        Returns:
            The chains after the round, and what it did.
        """
        process, k, noise = self.process, state.k, draws.noise
        row, column = torch.arange(len(k), device=k.device), torch.arange(noise.shape[1], device=k.device)
        step = (k[:, None] + column).clamp(max=process.num_steps - 1)  # columns beyond ``length`` are padding
        # Draft against target at every drafted step: a x cancels, (m_D − m_T)/σ = (b/σ)(x̂0_draft − x̂0_target).
        gain = torch.where(process.sigma[step] > 0, process.b[step] / process.sigma[step], 0.0)
        gap = (draft.x0 - target_x0[:, :-1]) * _per_column(gain, noise)
        comparison = DraftTargetGap.of(gap, noise, length)
        verdict = self.verifier.judge(comparison, draws.uniform[:, :-1])

        # The step after the accepted ones comes from the target, with a repaired noise where the draft was rejected.
        accepted = verdict.accepted
        rejected, at = accepted < length, accepted.clamp(max=noise.shape[1] - 1)
        rejection = Rejection(  # of the rows without one, numbers that are easily solved for
            distance=torch.where(rejected, comparison.distance[row, at], 1.0),
            noise_along_gap=torch.where(rejected, comparison.noise_along_gap[row, at], 0.0),
            log_scale=torch.where(rejected, verdict.log_scale, 0.0),
            uniform=draws.uniform[:, -1],
        )
        base = noise[row, at] if self.verifier.causal else draws.fresh
        repaired = _set_coordinate(base, gap[row, at], self.verifier.repair(rejection))
        last_noise = torch.where(per_row(rejected, base), repaired, draws.fresh)
        return self._advance(state, draft, target_x0, length, accepted, draws, last_noise)

    def step(
        self, state: ChainState, draft: Draft, target_x0: Float[Tensor, "n w1 ..."], draws: RoundNoise
    ) -> tuple[ChainState, RoundOutcome]:
        """Make one step of the target: :meth:`verify` of windows without drafts, at the price of a sequential step.

        Args:
            state: as for :meth:`verify`.
            draft: as for :meth:`verify`; only its start counts.
            target_x0: as for :meth:`verify`.
            draws: as for :meth:`verify`.

        Returns:
            The chains after the round, and what it did.
        """
        nothing = torch.zeros_like(state.k)
        return self._advance(state, draft, target_x0, nothing, nothing, draws, draws.fresh)

    def _advance(
        self,
        state: ChainState,
        draft: Draft,
        target_x0: Float[Tensor, "n w1 ..."],
        length: Int[Tensor, " n"],
        accepted: Int[Tensor, " n"],
        draws: RoundNoise,
        last_noise: Float[Tensor, "n ..."],
    ) -> tuple[ChainState, RoundOutcome]:
        """Go on from the last accepted state by one step with ``last_noise``."""
        row = torch.arange(len(accepted), device=accepted.device)
        end, x_end, x0_end = state.k + accepted, draft.states[row, accepted], target_x0[row, accepted]
        tail = state.tail
        if tail is not None:
            tail = UnverifiedTail.after(draft.states, draft.x0, target_x0, draws.noise, length, accepted)
        error, error_from = state.draft_x0_error, state.draft_x0_error_from
        if error is not None and error_from is not None:
            # Nothing is measured where the x̂0 at the end is the one that the draft was made from.
            begin = torch.where(state.last_eval_k < 0, state.k, state.last_eval_k)
            difference = draft.x0[row, accepted.clamp(max=draft.x0.shape[1] - 1)] - x0_end
            distance = torch.linalg.vector_norm(difference.flatten(1).double(), dim=1)
            error = torch.where(begin < end, distance, error)
            error_from = torch.where(begin < end, begin, error_from)
        after = ChainState(
            k=end + 1,
            x=self.process.step(x_end, x0_end, end, last_noise),
            last_eval_k=end,
            last_eval_x=x_end,
            last_eval_x0=x0_end,
            tail=tail,
            draft_x0_error=error,
            draft_x0_error_from=error_from,
        )
        return after, RoundOutcome(state.k, length, accepted, draft.states, target_x0)


def _per_column(value: Tensor, like: Tensor) -> Tensor:
    return value.view(*value.shape, *[1] * (like.ndim - 2))


def _set_coordinate(noise: Tensor, direction: Tensor, coordinate: Tensor) -> Tensor:
    """``noise`` with its component along ``direction`` replaced by ``coordinate``, row by row; in float64 inside."""
    flat, line = noise.flatten(1).double(), direction.flatten(1).double()
    line = line / torch.linalg.vector_norm(line, dim=1, keepdim=True).clamp(min=1e-300)
    moved = flat + (coordinate - (flat * line).sum(1))[:, None] * line
    return moved.view_as(noise).to(noise.dtype)
