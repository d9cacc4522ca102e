"""The state of a batch of chains, each at its own position."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, call_denoiser, gather_rows
from specpolicy.speculative.drafters.base import UnverifiedTail
from specpolicy.speculative.linear_chain import MultiStepTransition
from specpolicy.speculative.result import SampleResult


class StateBuffer:
    """Keeps states from the reader's position on and forgets those behind it.

    Chains of a batch are at different positions: a state waits here until the slowest chain has come that far. In
    place of K + 1 events a chain it holds as many as the fastest chain is ahead.
    """

    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}
        self._chains: dict[int, Tensor] = {}
        self._reader = 0

    def keep(self, where: Int[Tensor, " m"], chain: Int[Tensor, " m"], states: Float[Tensor, "m ..."]) -> None:
        """Keep ``states[i]``, which is the state of chain ``chain[i]`` at position ``where[i]``."""
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
        """The states of all chains at ``position``, and forget what is before it.

        Args:
            position: one that every chain has reached.
            latest: states of all chains where they are now; those that are just there have not been kept yet.
        """
        self._reader = position
        for old in [each for each in self._states if each < position]:
            del self._states[old], self._chains[old]
        if position not in self._states:
            return latest.clone()  # the chains go on in place
        return latest.index_copy(0, self._chains[position], self._states[position])


@dataclass
class RoundLog:
    """What the rounds did, in the order of the rounds; one row ``(B,)`` a round."""

    start: list[Tensor] = field(default_factory=list)
    proposed: list[Tensor] = field(default_factory=list)
    accepted: list[Tensor] = field(default_factory=list)

    def add(self, active: Tensor, start: Tensor, proposed: Tensor, accepted: Tensor, batch: int) -> None:
        """Note one round of the chains ``active``; the others get −1."""
        for rows, value in ((self.start, start), (self.proposed, proposed), (self.accepted, accepted)):
            row = torch.full((batch,), -1, dtype=torch.long)
            row[active.cpu()] = value.cpu()
            rows.append(row)

    def stacked(self, batch: int) -> dict[str, Tensor]:
        """Each list as one tensor ``(rounds, B)``, under its name in a :class:`SampleResult`."""
        none = torch.empty((0, batch), dtype=torch.long)
        return {name: torch.stack(rows) if rows else none for name, rows in vars(self).items()}


class ChainBatch:
    """B chains on their way from noise to sample.

    Attributes:
        k: position of each chain, shape ``(B,)``; K when finished.
        x: state, shape ``(B, *event)``, float32 or better.
        last_eval_k, last_eval_x, last_eval_x0: latest state at which the target was evaluated; ``last_eval_k`` is
            −1 before the first evaluation.
        passes, evaluations: the account of network use, shape ``(B,)``.
        draft_x0_error, draft_x0_error_from: the distance from the drafter's x̂0 to the target's at
            ``last_eval_k``, and the position of the x̂0 that it drafted from; shape ``(B,)``, infinite before the first
            comparison. None unless somebody wants to know (``measure``).
        state_buffer: keeps settled states for a reader that follows the rounds; None without one.
        replayed: whether the first round was a pre-drafted one.
        tail: of all chains after the latest round; None unless the drafter recycles (``recycle``).
    """

    def __init__(
        self,
        chain: MultiStepTransition,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond,
        record: bool,
        measure: bool = False,
        state_buffer: StateBuffer | None = None,
        recycle: bool = False,
    ) -> None:
        batch, device = len(noise), noise.device
        self.chain, self.process, self.denoiser, self.cond = chain, chain.process, denoiser, cond
        self.input_dtype = noise.dtype
        self.x = noise.to(self.process.a.dtype, copy=True)  # changed in place below; the noise is the caller's
        self.k = torch.zeros(batch, dtype=torch.long, device=device)
        self.last_eval_k = torch.full_like(self.k, -1)
        self.last_eval_x, self.last_eval_x0 = self.x.clone(), torch.zeros_like(self.x)
        self.passes, self.evaluations = torch.zeros_like(self.k), torch.zeros_like(self.k)
        self.draft_x0_error = torch.full_like(self.k, torch.inf, dtype=torch.float64) if measure else None
        self.draft_x0_error_from = torch.zeros_like(self.k)
        self.log, self.replayed, self.state_buffer = RoundLog(), False, state_buffer
        self.tail = UnverifiedTail.none(self.x, 0) if recycle else None
        steps, event = self.process.num_steps, noise.shape[1:]
        self.trajectory = self.x.new_empty((steps + 1, batch, *event)) if record else None
        self.recorded_x0 = self.x.new_empty((steps, batch, *event)) if record else None
        if self.trajectory is not None:
            self.trajectory[0] = self.x

    def active(self) -> Tensor:
        """Indices of the chains that have not finished."""
        return (self.k < self.process.num_steps).nonzero().squeeze(1)

    def target_x0(self, owner: Tensor, k: Tensor, x: Tensor) -> Tensor:
        """One network pass: the target's x̂0 at ``x``, row by row, where row i belongs to chain ``owner[i]``."""
        timestep = self.process.timesteps[k]
        output = call_denoiser(self.denoiser, x.to(self.input_dtype), timestep, gather_rows(self.cond, owner))
        self.passes[torch.unique(owner)] += 1
        self.evaluations.index_add_(0, owner, torch.ones_like(owner))
        return self.process.x0(x, output.to(x.dtype), k)

    def evaluate_current(self, chains: Tensor) -> None:
        """Spend a pass on the x̂0 of these chains at their present states."""
        k, x = self.k[chains], self.x[chains]
        self.set_last_eval(chains, k, x, self.target_x0(chains, k, x))

    def set_last_eval(self, chains: Tensor, k: Tensor, x: Tensor, x0: Tensor) -> None:
        """Remember the latest known x̂0."""
        self.last_eval_k[chains], self.last_eval_x[chains], self.last_eval_x0[chains] = k, x, x0

    def keep_tail(self, chains: Tensor, tail: UnverifiedTail) -> None:
        """Remember what a round has left of these chains; the others have finished."""
        self.tail = UnverifiedTail.none(self.x, tail.noise.shape[1])
        for whole, part in zip(self.tail, tail, strict=True):
            whole[chains] = part

    def record(self, chains: Tensor, k: Tensor, visited: Tensor, states: Tensor, x0: Tensor) -> None:
        """Keep visited states and their x̂0.

        Args:
            chains: shape ``(n,)``. k: position of the first column. visited: mask ``(n, w + 1)`` of columns to keep.
            states: x_k …, shape ``(n, w + 1, *event)``. x0: the target's x̂0 there.
        """
        if self.state_buffer is None and self.trajectory is None:
            return
        row, column = visited.nonzero(as_tuple=True)
        where = k[row] + column
        if self.state_buffer is not None:
            self.state_buffer.keep(where, chains[row], states[row, column])
        if self.trajectory is None or self.recorded_x0 is None:
            return
        self.trajectory[where, chains[row]] = states[row, column]
        self.recorded_x0[where, chains[row]] = x0[row, column]

    def result(self) -> SampleResult:
        """Samples and account; the trajectory only once all chains have finished."""
        finished = not len(self.active())
        if self.trajectory is not None:
            self.trajectory[-1] = self.x
        account = self.log
        return SampleResult.of_rounds(
            self.process.num_steps,
            self.k,
            sample=self.x.to(self.input_dtype),
            passes=self.passes.cpu(),
            evaluations=self.evaluations.cpu(),
            **account.stacked(len(self.x)),
            replayed=account.accepted[0] if self.replayed else None,
            trajectory=self.trajectory if finished else None,
            x0=self.recorded_x0 if finished else None,
        )
