"""ASDSV (Zhou et al. 2025): a smaller network drafts, a threshold at both ends of a draft decides. Approximate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.samplers import sequential
from specpolicy.speculative.chain_batch import RoundLog, StateBuffer
from specpolicy.speculative.denoiser import Cond, Denoiser, call_denoiser, gather_rows
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.process import ReverseProcess, per_row
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler_call import Noise, check_call
from specpolicy.utils.digests import checkpoint_digest, note_input

NORMS = ("l1", "l2")


@dataclass(frozen=True)
class ThresholdVerifier:
    """Takes a draft's prediction for the target's if they are closer than ``delta``. Not exact: it never corrects.

    Attributes:
        delta: bound on the distance, not below 0. 0 accepts nothing; infinity accepts everything, unseen.
        norm: ``"l1"`` is the mean absolute difference over an event, ``"l2"`` the root of the mean square.

    Raises:
        ValueError: ``delta`` is negative or NaN, or the norm unknown.
    """

    delta: float
    norm: str = "l1"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise ValueError(f"delta={self.delta}; give a distance of 0 or more, or infinity to accept everything")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}; known: {', '.join(NORMS)}")

    @property
    def compares(self) -> bool:
        """Whether the target has to be evaluated at all."""
        return not isinf(self.delta)

    def agrees(self, draft: Float[Tensor, "n ..."], target: Float[Tensor, "n ..."]) -> Bool[Tensor, " n"]:
        """Compare predictions.

        Args:
            draft: of the draft network, shape ``(n, *event)``.
            target: of the target.

        Returns:
            Which rows are closer than ``delta``.
        """
        difference = (draft - target).flatten(1).double()
        distance = difference.abs().mean(1) if self.norm == "l1" else difference.square().mean(1).sqrt()
        return distance < self.delta


@dataclass(frozen=True)
class AsdsvResult(SampleResult):
    """As :class:`SampleResult`, with these differences.

    NFE and rows are the target network's alone. A round with ``accepted`` drafts advances by so many steps, and by one
    if there were none. ``x0`` is None: the target has not seen every state.

    Attributes:
        draft_passes: sequential evaluations of the draft network, shape ``(B,)``; they take time, too.
    """

    draft_passes: Int[Tensor, " b"] | None = None


class AsdsvChains:
    """B chains under way from noise to sample, each at its own position.

    Attributes:
        k, x: position and state of each; K when finished.
        output, known: what the target says at ``x``, where it has been asked already.
        passes, evaluations: of the target, in sequence and in rows. draft_passes: of the draft network, in sequence.
        taken: which chains have taken a draft since the last :meth:`note`.
    """

    def __init__(
        self,
        process: ReverseProcess,
        random: ChainGenerators,
        noise: Tensor,
        begin: int,
        record: bool,
        state_buffer: StateBuffer | None,
    ) -> None:
        self.process, self.random, self.input_dtype = process, random, noise.dtype
        self.x = noise.to(process.a.dtype, copy=True)
        self.k = torch.full((len(noise),), begin, dtype=torch.long, device=noise.device)
        self.output, self.known = torch.zeros_like(self.x), torch.zeros_like(self.k, dtype=torch.bool)
        self.passes, self.evaluations = torch.zeros_like(self.k), torch.zeros_like(self.k)
        self.draft_passes, self.taken = torch.zeros_like(self.k), torch.zeros_like(self.known)
        self.log, self.state_buffer = RoundLog(), state_buffer
        self.trajectory = self.x.new_empty((process.num_steps + 1, *self.x.shape)) if record else None
        self._keep(torch.arange(len(noise), device=noise.device), self.k, self.x)

    def active(self) -> Tensor:
        """Indices of the chains that have not finished."""
        return (self.k < self.process.num_steps).nonzero().squeeze(1)

    def moved(self, chains: Tensor, k: Tensor, x: Tensor, output: Tensor) -> Tensor:
        """States after step ``k`` from ``x`` with a network's ``output``, with noise from the chains' own streams."""
        following = self.process.mean(x, self.process.x0(x, output, k), k)
        noisy = (self.process.sigma[k] > 0).nonzero().squeeze(1)
        if len(noisy):
            noise = self.random.noise(x.shape[1:], chains[noisy].tolist())
            following[noisy] += per_row(self.process.sigma[k[noisy]], noise) * noise
        return following

    def step(self, chains: Tensor, output: Tensor) -> None:
        """One step of these chains with the target's ``output``."""
        if not len(chains):
            return
        self.x[chains] = self.moved(chains, self.k[chains], self.x[chains], output)
        self.k[chains] += 1
        self.known[chains] = False
        self._keep(chains, self.k[chains], self.x[chains])

    def take(self, chains: Tensor, length: Tensor, path: Tensor) -> None:
        """Go the first ``length`` steps of ``path``, shape ``(n, w + 1, *event)``, from where the chains are."""
        column = torch.arange(path.shape[1], device=length.device)
        row, step = ((column > 0) & (column <= length[:, None])).nonzero(as_tuple=True)
        self._keep(chains[row], self.k[chains[row]] + step, path[row, step])
        self.x[chains] = path[torch.arange(len(chains), device=length.device), length]
        self.k[chains] += length
        self.taken[chains] = True

    def cache_target(self, chains: Tensor, output: Tensor) -> None:
        """Keep the target's output at the states that these chains are about to take.

        Args:
            chains: indices, shape ``(n,)``.
            output: shape ``(n, *event)``.
        """
        self.output[chains], self.known[chains] = output, True

    def note(self, active: Tensor, start: Tensor, proposed: Tensor) -> None:
        """Enter a round of the chains ``active`` into the account."""
        accepted = torch.where(self.taken[active], proposed, 0)
        self.log.add(active, start, proposed, accepted, len(self.k))
        self.taken[:] = False

    def result(self) -> AsdsvResult:
        """Samples and account; the trajectory only once all chains have finished."""
        return AsdsvResult(
            sample=self.x.to(self.input_dtype),
            passes=self.passes.cpu(),
            evaluations=self.evaluations.cpu(),
            **self.log.stacked(len(self.x)),
            trajectory=None if len(self.active()) else self.trajectory,
            draft_passes=self.draft_passes.cpu(),
        )

    def _keep(self, chains: Tensor, where: Tensor, states: Tensor) -> None:
        if self.state_buffer is not None:
            self.state_buffer.keep(where, chains, states)
        if self.trajectory is not None:
            self.trajectory[where, chains] = states


@dataclass(frozen=True)
class DraftSchedule:
    """Which network makes which steps of a chain.

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

    A round at x_k: the draft network makes γ steps from x_k. Its prediction at x_k is compared with the target's, and
    so is that at the last point from which it stepped. If both are closer than the threshold, all γ steps are taken;
    otherwise all are dropped, and the target makes one step from x_k. The last check of a round and the first of the
    next one share a batch of two rows, so that an accepted round waits for one evaluation of the target; so does a
    round whose first check fails, where no further step is drafted.

    Args:
        process: the chain; unlike for exact speculation it may be one without noise.
        draft: the smaller network, asked with the same ``(x, timestep, cond)`` as the target and of the same
            ``prediction_type``. Predictions are compared as the networks make them: noise for ε-networks.
        verifier: the threshold. With an infinite one the target is not asked after the first part of the chain.
        schedule: which network makes which steps.
    """

    exact: bool = False

    def __init__(
        self,
        process: ReverseProcess,
        draft: Denoiser,
        verifier: ThresholdVerifier,
        schedule: DraftSchedule | None = None,
    ) -> None:
        self.process, self.draft, self.verifier = process, draft, verifier
        self.schedule = schedule if schedule is not None else DraftSchedule()
        self._lengths = self.schedule.lengths(process.num_steps)

    def __repr__(self) -> str:
        return f"AsdsvSampler(K={self.process.num_steps}, {self.verifier}, {self.schedule}, approximate)"

    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> AsdsvResult:
        """Sample one chain for each row of ``noise``; see :class:`specpolicy.speculative.sampler_call.Sampler`."""
        *_, running = self.rounds(denoiser, noise, cond, generator, record)
        return running.result()

    def rounds(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        begin: int = 0,
        state_buffer: StateBuffer | None = None,
    ) -> Iterator[AsdsvChains]:
        """The same, round by round; see :meth:`SpeculativeSampler.rounds`."""
        random = check_call(noise, cond, generator)
        running = AsdsvChains(self.process.to(noise.device, random.dtype), random, noise, begin, record, state_buffer)
        lengths = self._lengths.to(noise.device)
        while len(running.active()):
            with torch.no_grad():
                self._round(running, denoiser, cond, lengths)
            yield running

    def _round(self, running: AsdsvChains, target: Denoiser, cond: Cond, lengths: Tensor) -> None:
        active = running.active()
        start = running.k[active]
        length = torch.minimum(lengths[running.k[active]], running.process.num_steps - running.k[active])
        alone, drafting = active[length == 0], active[length > 0]
        unseen = active if self.verifier.compares else alone
        unseen = unseen[~running.known[unseen]]
        if len(unseen):
            self._ask(running, target, cond, unseen, running.k[unseen], running.x[unseen])
        if len(alone):
            running.step(alone, running.output[alone])
        if len(drafting):
            self._draft(running, target, cond, drafting, length[length > 0])
        running.note(active, start, length)

    def _draft(self, running: AsdsvChains, target: Denoiser, cond: Cond, chains: Tensor, length: Tensor) -> None:
        """Draft, look at both ends, and take all or nothing."""
        first = self._predict(running, cond, chains, running.k[chains], running.x[chains])
        if self.verifier.compares:
            agreed = self.verifier.agrees(first, running.output[chains])
            running.step(chains[~agreed], running.output[chains[~agreed]])
            chains, length, first = chains[agreed], length[agreed], first[agreed]
        if not len(chains):
            return
        # States y_0 … y_γ of each chain, and the prediction at the last point from which it stepped.
        k, states, last = running.k[chains], [running.x[chains]], first.clone()
        for step in range(int(length.max())):
            going = (length > step).nonzero().squeeze(1)
            if step:
                last[going] = self._predict(running, cond, chains[going], k[going] + step, states[-1][going])
            moved = states[-1].clone()
            moved[going] = running.moved(chains[going], k[going] + step, states[-1][going], last[going])
            states.append(moved)
        path = torch.stack(states, 1)
        kept = torch.ones_like(length, dtype=torch.bool)
        if self.verifier.compares:
            kept = self._look_back(running, target, cond, chains, length, path, last)
        running.step(chains[~kept], running.output[chains[~kept]])
        running.take(chains[kept], length[kept], path[kept])

    def _look_back(
        self,
        running: AsdsvChains,
        target: Denoiser,
        cond: Cond,
        chains: Tensor,
        length: Tensor,
        path: Tensor,
        last: Tensor,
    ) -> Tensor:
        """Which chains keep their draft: one evaluation at its last point and where the next round would begin."""
        row, k, event = torch.arange(len(chains), device=length.device), running.k[chains], path.shape[2:]
        # a draft of one step has been judged by the first check; one that ends the chain has no next round
        asked = torch.stack([length > 1, k + length < running.process.num_steps], 1)
        points = torch.stack([path[row, length - 1], path[row, length]], 1)
        where = torch.stack([k + length - 1, k + length], 1)
        answers = torch.zeros_like(points)
        if asked.any():
            owner = chains[:, None].expand(-1, 2)[asked]
            answers[asked] = self._target(running, target, cond, owner, where[asked], points[asked])
        kept = ~asked[:, 0] | self.verifier.agrees(last, answers[:, 0])
        running.cache_target(chains[kept & asked[:, 1]], answers[kept & asked[:, 1], 1].view(-1, *event))
        return kept

    def _ask(self, running: AsdsvChains, target: Denoiser, cond: Cond, chains: Tensor, k: Tensor, x: Tensor) -> None:
        running.output[chains] = self._target(running, target, cond, chains, k, x)
        running.known[chains] = True

    def _target(
        self, running: AsdsvChains, target: Denoiser, cond: Cond, owner: Tensor, k: Tensor, x: Tensor
    ) -> Tensor:
        running.passes[torch.unique(owner)] += 1
        running.evaluations.index_add_(0, owner, torch.ones_like(owner))
        return _predict(target, running, cond, owner, k, x)

    def _predict(self, running: AsdsvChains, cond: Cond, owner: Tensor, k: Tensor, x: Tensor) -> Tensor:
        running.draft_passes[owner] += 1
        return _predict(self.draft, running, cond, owner, k, x)


def _predict(network: Denoiser, running: AsdsvChains, cond: Cond, owner: Tensor, k: Tensor, x: Tensor) -> Tensor:
    timestep = running.process.timesteps[k]
    return call_denoiser(network, x.to(running.input_dtype), timestep, gather_rows(cond, owner)).to(x.dtype)


def asdsv_slow(process: ReverseProcess, draft: Denoiser, delta: float = 0.02) -> AsdsvSampler:
    """Make the published sampler with verification; published: δ = 0.02 for Flux, 0.2 for Wan 2.1. Approximate."""
    return AsdsvSampler(process, draft, ThresholdVerifier(delta))


def asdsv_fast(process: ReverseProcess, draft: Denoiser) -> AsdsvSampler:
    """Make the published sampler without verification: after the first part of the chain the draft network steps."""
    return AsdsvSampler(process, draft, ThresholdVerifier(math.inf))


def asdsv(
    policy: DiffusionPolicy, num_inference_steps: int, delta: float, draft: str | Path | None = None
) -> AsdsvSampler:
    """ASDSV with a smaller policy as the draft network, in the published draft schedule. Approximate.

    Args:
        policy: the target.
        num_inference_steps: K of the DDPM chain.
        delta: largest mean absolute difference of the networks' predictions at which a draft is kept; infinity never
            asks the target after the first part of the chain.
        draft: checkpoint of the smaller policy; None for that of the target with ``_draft`` after its name.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it looks at other observations, scales them otherwise, or predicts something else; or the target is
            of no checkpoint and ``draft`` is None.
    """
    if draft is None:
        if policy.folder is None:
            raise ValueError("the policy was not loaded from a checkpoint, so that it has no draft beside it: name one")
        draft = policy.folder.with_name(policy.folder.name + "_draft")
    if not Path(draft).is_dir():
        raise FileNotFoundError(
            f"no draft network in {draft}; distil one: specpolicy train policy=mlp policy.network.width=192 "
            f"teacher={policy.folder} out={draft}"
        )
    smaller = DiffusionPolicy.from_pretrained(draft, policy.device)
    _check(policy, smaller)
    note_input(f"draft network {Path(draft).name}", checkpoint_digest(draft))
    return AsdsvSampler(
        sequential(policy, num_inference_steps).process, smaller, ThresholdVerifier(delta), DraftSchedule()
    )


def _check(policy: DiffusionPolicy, draft: DiffusionPolicy) -> None:
    policy.config.check_interchangeable(draft.config, "draft network")
    for name in ("observation_normalizer", "action_normalizer"):
        mine, others = (getattr(each, name).state_dict() for each in (policy, draft))
        if any(not torch.equal(mine[key], others[key]) for key in mine):
            raise ValueError(f"{name}: the draft network scales otherwise than the policy; distil it from this policy")
