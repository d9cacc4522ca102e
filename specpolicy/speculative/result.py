"""Samples with their network evaluations and rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.speculative.log_prob import ChainLogProb, recorded_log_prob
from specpolicy.speculative.process import ReverseProcess


@dataclass(frozen=True)
class SampleResult:
    """Samples and what they cost.

    Attributes:
        sample: shape ``(B, *event)``, dtype of the noise that was handed in.
        passes: sequential network evaluations of each chain in this call, shape ``(B,)``. With a pre-draft those after
            the true condition was known; what the pre-draft took is not counted.
        evaluations: rows that the network computed for each chain, shape ``(B,)``.
        start: position in the chain (0 … K − 1) at which each round began, −1 once a chain was finished,
            shape ``(rounds, B)``; None for samplers without rounds.
        proposed: drafted steps that were verified in each round, −1 as above.
        accepted: how many of them were accepted, −1 as above; the round advances by ``accepted + 1`` steps.
        replayed: with a pre-draft: how many of its steps each chain kept, shape ``(B,)``; None without.
        trajectory: with ``record``: every state from noise to sample, shape ``(K + 1, B, *event)``.
        x0: with ``record``: the target's x̂0 at the first K of these states, shape ``(K, B, *event)``.
    """

    sample: Float[Tensor, "b ..."]
    passes: Int[Tensor, " b"]
    evaluations: Int[Tensor, " b"]
    start: Int[Tensor, "rounds b"] | None = None
    proposed: Int[Tensor, "rounds b"] | None = None
    accepted: Int[Tensor, "rounds b"] | None = None
    replayed: Int[Tensor, " b"] | None = None
    trajectory: Float[Tensor, "k1 b ..."] | None = None
    x0: Float[Tensor, "k b ..."] | None = None

    @staticmethod
    def of_rounds(
        steps: int,
        position: Int[Tensor, " b"],
        *,
        start: Int[Tensor, "rounds b"],
        accepted: Int[Tensor, "rounds b"],
        **parts: Any,
    ) -> SampleResult:
        """Make the result of a sampler that works in rounds, and check that its rounds add up.

        Args:
            steps: K.
            position: of each chain now; K if it is finished.
            start: as in the attributes, on the CPU.
            accepted: as in the attributes, on the CPU.
            **parts: the other attributes.

        Raises:
            RuntimeError: a chain is beyond its end, or not where accepted steps and rounds have brought it: from
                noise to sample they are K together.
        """
        position = position.cpu()
        if len(start):
            brought = start[0] + torch.where(accepted >= 0, accepted + 1, 0).sum(dim=0)
            if bool((brought != position).any() or (position > steps).any()):
                raise RuntimeError(
                    f"the rounds do not add up: chains of {steps} steps stand at {position.tolist()} after "
                    f"{brought.tolist()} steps; this is a defect of the sampler, and its samples cannot be trusted"
                )
        return SampleResult(start=start, accepted=accepted, **parts)

    @property
    def acceptance(self) -> float:
        """Share of drafted steps that were accepted, over all chains and rounds; NaN without rounds."""
        if self.accepted is None or self.proposed is None:
            return float("nan")
        drafted = self.proposed.clamp(min=0).sum()
        return float(self.accepted.clamp(min=0).sum() / drafted) if drafted else float("nan")

    def log_prob(self, process: ReverseProcess) -> ChainLogProb:
        """Compute the log-probability of each recorded transition under the network that was sampled from.

        Gradients do not reach the network from here; :func:`specpolicy.speculative.log_prob.chain_log_prob` evaluates
        ``trajectory`` under a network again, also under another one.

        Args:
            process: the chain that was sampled.

        Returns:
            Log-densities of all steps with noise, and their sum.

        Raises:
            ValueError: nothing was recorded, or the process is another one.
        """
        if self.trajectory is None or self.x0 is None:
            raise ValueError("the result holds no trajectory; call the sampler with record=True")
        return recorded_log_prob(process, self.trajectory, self.x0)
