"""Recorded chains, and how x̂0 changes along them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specpolicy.speculative.linear_chain import LinearChain
from specpolicy.speculative.process import ReverseProcess


@dataclass(frozen=True)
class RecordedChains:
    """N sequential chains of K steps, events flattened to d numbers.

    Attributes:
        states: x_0 … x_K, shape ``(K + 1, N, d)``.
        x0: the network's x̂0 at the first K of them, shape ``(K, N, d)``.
        cond: their conditions, shape ``(N, c)``.
        group: whole numbers; chains of one group have conditions that resemble each other (one episode, or one and the
            same observation) and are never on both sides of a held-out split. Shape ``(N,)``.
    """

    states: Float[Tensor, "k1 n d"]
    x0: Float[Tensor, "k n d"]
    cond: Float[Tensor, "n c"]
    group: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.cond)

    @property
    def num_steps(self) -> int:
        """K."""
        return len(self.x0)

    @property
    def num_groups(self) -> int:
        """How many different groups."""
        return len(torch.unique(self.group))

    def where(self, kept: Bool[Tensor, " n"]) -> RecordedChains:
        """Some of the chains."""
        return RecordedChains(self.states[:, kept], self.x0[:, kept], self.cond[kept], self.group[kept])

    def split(self, share: float = 0.2, seed: int = 0) -> tuple[RecordedChains, RecordedChains]:
        """Chains to fit on, and those of about ``share`` of the groups to judge by.

        Raises:
            ValueError: there are fewer than two groups.
        """
        groups = torch.unique(self.group)
        if len(groups) < 2:
            raise ValueError(
                "all chains are of one episode or observation, so that none can be held out; record more of them"
            )
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
        held_out = groups[order[: max(1, round(share * len(groups)))]]
        judged_by = torch.isin(self.group, held_out)
        return self.where(~judged_by), self.where(judged_by)


def changes(
    process: ReverseProcess, chains: RecordedChains, lag: int
) -> tuple[Float[Tensor, "j n d"], Float[Tensor, "j n d"]]:
    """What a drafter sees and what it should say, ``lag`` steps after the last x̂0 that it knows.

    Returns:
        For the steps j = lag … K − 1: the innovation x_j − x̄_j, where x̄ is the mean path from x_{j−lag} under its
        constant x̂0; and the change of x̂0 on the way.
    """
    states, x0, steps = chains.states, chains.x0, chains.num_steps
    begin = torch.arange(steps - lag)
    chain = LinearChain(process.to("cpu", states.dtype))
    mean = chain.mean(begin, begin + lag, states[: steps - lag], x0[: steps - lag])
    return states[lag:steps] - mean, x0[lag:] - x0[: steps - lag]


def sensitivity(process: ReverseProcess) -> Float[Tensor, " k"]:
    """b_k/σ_k: by how many standard deviations a step is wrong if its x̂0 is wrong by one; 0 without noise."""
    return torch.where(process.sigma > 0, process.b / process.sigma.clamp(min=1e-300), 0.0)
