"""ASDSV: a small network draws several steps, and the target looks at the first and the last of them.

Approximate Speculative Diffusion with Speculative Verification (Zhou et al. 2025). *Not exact*: accepted steps keep the
draft network's error, and errors of the steps in between are never seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, call_denoiser, check_cond, gather_rows, state_dtype
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.randomness import RandomSource
from specpolicy.speculative.sampler import Generators
from specpolicy.speculative.trail import Trail

from .courses import Courses
from .result import AsdsvResult
from .threshold import ThresholdVerifier


@dataclass(frozen=True)
class Stages:
    """Who makes which steps of a chain.

    Attributes:
        alone: share of the chain that the target makes alone at the beginning (published: 8–15 %); at least one step.
        warm_up: share after that in which drafts are ``short`` steps long (published: 15–25 %).
        short: γ1, draft length in the warm-up. 4 is this library's choice.
        long: γ2, draft length after it (published: 9).

    Raises:
        ValueError: shares are not in [0, 1] or exceed 1 together, or a draft is shorter than one step.
    """

    alone: float = 0.1
    warm_up: float = 0.2
    short: int = 4
    long: int = 9

    def __post_init__(self) -> None:
        if min(self.alone, self.warm_up) < 0 or self.alone + self.warm_up > 1:
            raise ValueError(f"{self}: alone and warm_up are shares of the chain, 0 to 1, and 1 at most together")
        if min(self.short, self.long) < 1:
            raise ValueError(f"{self}: a draft has at least 1 step")

    def lengths(self, steps: int) -> Int[Tensor, " k"]:
        """Steps to draft at each position of a chain; 0 where the target goes alone."""
        alone = min(steps, max(1, round(self.alone * steps)))
        warm = min(steps, alone + round(self.warm_up * steps))
        return torch.tensor([0] * alone + [self.short] * (warm - alone) + [self.long] * (steps - warm))


class AsdsvSampler:
    """Rounds of drafting with a smaller network, checked at both ends. Approximate.

    A round at x_k: the draft network makes γ steps from x_k. Its prediction at x_k is held against the target's, and so
    is that at the last point from which it stepped. Closer than the threshold at both: all γ steps are taken. Not: all
    are dropped, and the target makes one step from x_k. The last check of a round and the first of the next one share a
    batch of two rows, so that an accepted round waits for one pass of the target; so does a round whose first check
    fails, where no further step is drafted.

    Args:
        process: the chain; unlike for exact speculation it may be one without noise.
        draft: the smaller network, asked with the same ``(x, timestep, cond)`` as the target and of the same
            ``prediction_type``. Predictions are compared as the networks make them: noise for ε-networks.
        verifier: the threshold. With an infinite one the target is not asked after the first stage.
        stages: who makes which steps.
    """

    exact: bool = False

    def __init__(
        self, process: ReverseProcess, draft: Denoiser, verifier: ThresholdVerifier, stages: Stages | None = None
    ) -> None:
        self.process, self.draft, self.verifier = process, draft, verifier
        self.stages = stages if stages is not None else Stages()
        self._lengths = self.stages.lengths(process.num_steps)

    def __repr__(self) -> str:
        return f"AsdsvSampler(K={self.process.num_steps}, {self.verifier}, {self.stages}, approximate)"

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
    ) -> AsdsvResult:
        """Sample one chain for each row of ``noise``; arguments and errors as for :class:`SpeculativeSampler`."""
        *_, courses = self.rounds(denoiser, noise, cond, generator, record)
        return courses.result()

    def rounds(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        begin: int = 0,
        trail: Trail | None = None,
    ) -> Iterator[Courses]:
        """The same, round by round; see :meth:`SpeculativeSampler.rounds`."""
        check_cond(cond, len(noise))
        dtype = state_dtype(noise)
        random = RandomSource(generator, len(noise), noise.device, dtype)
        courses = Courses(self.process.to(noise.device, dtype), random, noise, begin, record, trail)
        lengths = self._lengths.to(noise.device)
        while len(courses.active()):
            with torch.no_grad():
                self._round(courses, denoiser, cond, lengths)
            yield courses

    def _round(self, courses: Courses, target: Denoiser, cond: Cond, lengths: Tensor) -> None:
        active = courses.active()
        start = courses.k[active]
        length = torch.minimum(lengths[courses.k[active]], courses.process.num_steps - courses.k[active])
        alone, drafting = active[length == 0], active[length > 0]
        unseen = active if self.verifier.looks else alone
        unseen = unseen[~courses.known[unseen]]
        if len(unseen):
            self._ask(courses, target, cond, unseen, courses.k[unseen], courses.x[unseen])
        if len(alone):
            courses.step(alone, courses.output[alone])
        if len(drafting):
            self._draft(courses, target, cond, drafting, length[length > 0])
        courses.note(active, start, length)

    def _draft(self, courses: Courses, target: Denoiser, cond: Cond, chains: Tensor, length: Tensor) -> None:
        """Draft, look at both ends, and take all or nothing."""
        first = self._predict(courses, cond, chains, courses.k[chains], courses.x[chains])
        if self.verifier.looks:
            agreed = self.verifier.agrees(first, courses.output[chains])
            courses.step(chains[~agreed], courses.output[chains[~agreed]])
            chains, length, first = chains[agreed], length[agreed], first[agreed]
        if not len(chains):
            return
        # States y_0 … y_γ of each chain, and the prediction at the last point from which it stepped.
        k, states, last = courses.k[chains], [courses.x[chains]], first.clone()
        for step in range(int(length.max())):
            going = (length > step).nonzero().squeeze(1)
            if step:
                last[going] = self._predict(courses, cond, chains[going], k[going] + step, states[-1][going])
            moved = states[-1].clone()
            moved[going] = courses.moved(chains[going], k[going] + step, states[-1][going], last[going])
            states.append(moved)
        path = torch.stack(states, 1)
        kept = torch.ones_like(length, dtype=torch.bool)
        if self.verifier.looks:
            kept = self._look_back(courses, target, cond, chains, length, path, last)
        courses.step(chains[~kept], courses.output[chains[~kept]])
        courses.take(chains[kept], length[kept], path[kept])

    def _look_back(
        self,
        courses: Courses,
        target: Denoiser,
        cond: Cond,
        chains: Tensor,
        length: Tensor,
        path: Tensor,
        last: Tensor,
    ) -> Tensor:
        """Which chains keep their draft: one pass over its last point, and over where the next round would begin."""
        row, k, event = torch.arange(len(chains), device=length.device), courses.k[chains], path.shape[2:]
        # a draft of one step has been judged by the first check; one that ends the chain has no next round
        asked = torch.stack([length > 1, k + length < courses.process.num_steps], 1)
        points = torch.stack([path[row, length - 1], path[row, length]], 1)
        where = torch.stack([k + length - 1, k + length], 1)
        answers = torch.zeros_like(points)
        if asked.any():
            owner = chains[:, None].expand(-1, 2)[asked]
            answers[asked] = self._target(courses, target, cond, owner, where[asked], points[asked])
        kept = ~asked[:, 0] | self.verifier.agrees(last, answers[:, 0])
        courses.foresee(chains[kept & asked[:, 1]], answers[kept & asked[:, 1], 1].view(-1, *event))
        return kept

    def _ask(self, courses: Courses, target: Denoiser, cond: Cond, chains: Tensor, k: Tensor, x: Tensor) -> None:
        courses.output[chains] = self._target(courses, target, cond, chains, k, x)
        courses.known[chains] = True

    def _target(self, courses: Courses, target: Denoiser, cond: Cond, owner: Tensor, k: Tensor, x: Tensor) -> Tensor:
        courses.passes[torch.unique(owner)] += 1
        courses.evaluations.index_add_(0, owner, torch.ones_like(owner))
        return _predict(target, courses, cond, owner, k, x)

    def _predict(self, courses: Courses, cond: Cond, owner: Tensor, k: Tensor, x: Tensor) -> Tensor:
        courses.draft_passes[owner] += 1
        return _predict(self.draft, courses, cond, owner, k, x)


def _predict(network: Denoiser, courses: Courses, cond: Cond, owner: Tensor, k: Tensor, x: Tensor) -> Tensor:
    timestep = courses.process.timesteps[k]
    return call_denoiser(network, x.to(courses.input_dtype), timestep, gather_rows(cond, owner)).to(x.dtype)


def asdsv_slow(process: ReverseProcess, draft: Denoiser, delta: float = 0.02) -> AsdsvSampler:
    """The published settings with verification; δ = 0.02 was for Flux, 0.2 for Wan 2.1: choose yours. Approximate."""
    return AsdsvSampler(process, draft, ThresholdVerifier(delta))


def asdsv_fast(process: ReverseProcess, draft: Denoiser) -> AsdsvSampler:
    """The published settings without verification: after the first stage the draft network makes all steps."""
    return AsdsvSampler(process, draft, ThresholdVerifier(math.inf))
