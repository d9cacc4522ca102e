"""How far drafts are kept, from each position of the chain and for each window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.speculative.verifiers import AcceptedPrefix, DraftTargetGap, Rejection, StepwiseVerifier, Verifier

NEIGHBOURS = 30
"""Rounds that an estimate at one position rests on, if nothing else is asked for."""


@dataclass(frozen=True)
class AcceptanceProfile:
    """Recorded rounds of long windows, and what shorter ones would have kept of them.

    Attributes:
        num_steps: K.
        reach: steps that can be drafted from each position, shape ``(K,)``.
        start: position at which each round began, shape ``(R,)``.
        accepted: steps of each round that a window of 1, 2, … W steps would have kept, shape ``(R, W)``.
        chain: which chain each round is of, shape ``(R,)``.
        neighbours: rounds that an estimate at one position rests on; where fewer began, those at positions near it
            count as well. More are steadier, and blur what changes along the chain.

    Raises:
        ValueError: there is no round, or the shapes do not fit one another.
    """

    num_steps: int
    reach: Int[Tensor, " k"]
    start: Int[Tensor, " r"]
    accepted: Int[Tensor, "r w"]
    chain: Int[Tensor, " r"]
    neighbours: int = NEIGHBOURS

    def __post_init__(self) -> None:
        """Check the shapes."""
        rounds = {len(self.start), len(self.accepted), len(self.chain)}
        if len(rounds) > 1 or rounds == {0} or len(self.reach) != self.num_steps:
            raise ValueError(
                f"profile of {sorted(rounds)} rounds and {len(self.reach)} positions for {self.num_steps} steps; "
                "record at least one round, and a reach for each step"
            )

    def halves(self) -> tuple[AcceptanceProfile, AcceptanceProfile]:
        """The rounds of every other chain, and those of the rest.

        Raises:
            ValueError: there is only one chain.
        """
        odd = torch.isin(self.chain, torch.unique(self.chain)[1::2])
        return self._where(~odd), self._where(odd)

    def _where(self, kept: Bool[Tensor, " r"]) -> AcceptanceProfile:
        return replace(self, start=self.start[kept], accepted=self.accepted[kept], chain=self.chain[kept])

    @property
    def longest(self) -> int:
        """W."""
        return self.accepted.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; of a verifier that goes step by step, which keeps the same of shorter windows."""
        columns = {"start": self.start, "accepted": self.accepted[:, -1], "chain": self.chain}
        return {"longest": self.longest, **{name: column.tolist() for name, column in columns.items()}}

    @staticmethod
    def from_dict(entry: dict[str, Any], reach: Int[Tensor, " k"]) -> AcceptanceProfile:
        """Read :meth:`to_dict`.

        Args:
            entry: what that returned.
            reach: as in the attributes.

        Returns:
            The profile.

        Raises:
            ValueError: it is no such entry, or of another number of steps.
        """
        start, last, chain = (torch.tensor(entry[name], dtype=torch.long) for name in ("start", "accepted", "chain"))
        longest = int(entry["longest"])
        if longest < 1 or bool((start < 0).any() or (start >= len(reach)).any() or (last < 0).any()):
            raise ValueError(f"rounds of a window of {longest} steps that do not lie within {len(reach)} steps")
        accepted = torch.minimum(last[:, None], torch.arange(1, longest + 1))
        return AcceptanceProfile(len(reach), reach.cpu(), start, accepted, chain)

    @cached_property
    def weights(self) -> Float64[Tensor, "k r"]:
        """How much each round tells about each position; each row sums to 1.

        Rounds that began there, if they are enough; else the nearer they began, the more.
        """
        return torch.stack([self._weights(position) for position in range(self.num_steps)])

    def _weights(self, position: int) -> Float64[Tensor, " r"]:
        away, width = (self.start - position).abs().double(), 0.5
        weights = (away == 0).double()
        while weights.sum() < min(self.neighbours, 0.9 * len(away)) and width < self.num_steps:
            weights = torch.exp(-(away**2) / (2 * width**2))
            width *= 1.5
        return weights / weights.sum()


class _Listener(Verifier):
    """A verifier that notes what every shorter window would have kept."""

    def __init__(self, inner: Verifier, longest: int) -> None:
        self.inner, self.longest = inner, longest
        self.exact, self.causal = inner.exact, inner.causal
        self.heard: list[Tensor] = []

    def judge(self, comparison: DraftTargetGap, uniform: Float64[Tensor, "n w"]) -> AcceptedPrefix:
        """As the inner one."""
        kept = []
        for window in range(1, self.longest + 1):
            width = min(window, uniform.shape[1])
            length = comparison.length.clamp(max=window)
            shorter = DraftTargetGap(comparison.distance[:, :width], comparison.noise_along_gap[:, :width], length)
            kept.append(self.inner.judge(shorter, uniform[:, :width]).accepted)
        self.heard.append(torch.stack(kept, dim=1).cpu())
        return self.inner.judge(comparison, uniform)

    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """As the inner one."""
        return self.inner.repair(rejection)


def is_stepwise(verifier: Verifier) -> bool:
    """Tell whether what a verifier keeps of a short window is the beginning of what it keeps of a longer one."""
    return type(verifier).judge is StepwiseVerifier.judge


def record_profile(
    sampler: SpeculativeSampler,
    run: Callable[[SpeculativeSampler], SampleResult],
    longest: int,
    reach: Int[Tensor, " k"],
    repeats: int = 1,
) -> AcceptanceProfile:
    """Record the rounds of windows of ``longest`` steps.

    The rounds begin where such a sampler's rounds do. Those of shorter windows begin elsewhere, which is why positions
    borrow from their neighbours.

    Args:
        sampler: whose process, drafter, verifier and initial_guess.
        run: samples some chains; called ``repeats`` times.
        longest: window.
        reach: as in :class:`AcceptanceProfile`.
        repeats: how often.
    """
    listener = _Listener(sampler.verifier, longest)
    listening = SpeculativeSampler(sampler.process, sampler.drafter, listener, longest, sampler.initial_guess)
    starts, accepted, chains = [], [], []
    for repeat in range(repeats):
        listener.heard.clear()
        result = run(listening)
        if result.start is None or result.proposed is None:  # a speculative sampler always tells; for the type checker
            raise ValueError("the sampler does not tell where its rounds began")
        heard = iter(listener.heard)
        for start, proposed in zip(result.start, result.proposed, strict=True):
            playing = (start >= 0).nonzero().squeeze(1)
            judged = bool((proposed > 0).any())  # a round in which nothing is drafted is not
            starts.append(start[playing])
            accepted.append(next(heard) if judged else torch.zeros((len(playing), longest), dtype=torch.long))
            chains.append(playing + repeat * len(start))
    rounds = torch.cat(starts), torch.cat(accepted), torch.cat(chains)
    return AcceptanceProfile(sampler.process.num_steps, reach.cpu(), *rounds)
