"""The state of a batch of chains as plain tensors of fixed shapes, so that a round is a function of tensors alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from ..leftover import Leftover
from ..result import SampleResult


class RoundState(NamedTuple):
    """B chains on their way.

    Attributes:
        k, x: position, K when finished, and state of each chain.
        anchor_k, anchor_x, anchor_x0: latest state at which an x̂0 is known.
        passes, evaluations: account of network use, ``(B,)``.
        rounds: rounds so far, ``(1,)``.
        log: position, drafted and accepted steps of each chain in each round, ``(3, R, B)``; −1 where there is none.
        finite: whether the network's output has always been finite, ``(1,)``.
        trajectory, x0: visited states and the target's x̂0 there, ``(K + 2, B, *event)`` with a last row for what is
            not to be kept; no rows at all if nothing is recorded.
        leftover: of the last round, in windows of the longest one's width; None if the drafter does not recycle.
    """

    k: Int[Tensor, " b"]
    x: Float[Tensor, "b ..."]
    anchor_k: Int[Tensor, " b"]
    anchor_x: Float[Tensor, "b ..."]
    anchor_x0: Float[Tensor, "b ..."]
    passes: Int[Tensor, " b"]
    evaluations: Int[Tensor, " b"]
    rounds: Int[Tensor, " 1"]
    log: Int[Tensor, "3 r b"]
    finite: Bool[Tensor, " 1"]
    trajectory: Float[Tensor, "k2 b ..."]
    x0: Float[Tensor, "k2 b ..."]
    leftover: Leftover | None = None

    @staticmethod
    def start(
        x: Float[Tensor, "b ..."], steps: int, record: bool, recycled: int | None = None, chains: int | None = None
    ) -> RoundState:
        """Chains at pure noise ``x``, in the dtype of the states, before any pass.

        Args:
            x: one row a chain. steps: K. record: keep what was visited.
            recycled: the longest window that a round may leave something of; None keeps no leftover.
            chains: the rows after so many only fill the batch, and are finished from the start; None: there are none.
        """
        batch, rows = len(x), steps + 2 if record else 0
        nobody = torch.zeros(batch, dtype=torch.long, device=x.device)
        k = nobody.clone()
        k[batch if chains is None else chains :] = steps
        return RoundState(
            k=k,
            x=x.clone(),
            anchor_k=nobody,
            anchor_x=x.clone(),
            anchor_x0=torch.zeros_like(x),
            passes=nobody.clone(),
            evaluations=nobody.clone(),
            rounds=torch.zeros(1, dtype=torch.long, device=x.device),
            log=torch.full(
                (3, steps, batch), -1, dtype=torch.long, device=x.device
            ),  # every round makes at least one step
            finite=torch.ones(1, dtype=torch.bool, device=x.device),
            trajectory=x.new_zeros((rows, *x.shape)),
            x0=x.new_zeros((rows, *x.shape)),
            leftover=None if recycled is None else Leftover.none(x, recycled),
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


class Draws(NamedTuple):
    """The random numbers of one round.

    Attributes:
        noise: to draft with, ``(B, w, *event)``. fresh: for the step after the accepted ones, ``(B, *event)``.
        uniform: in [0, 1), ``(B, w + 1)``; one for each drafted step and one for the repair.
    """

    noise: Float[Tensor, "b w ..."]
    uniform: Float64[Tensor, "b w1"]
    fresh: Float[Tensor, "b ..."]
