"""The state of a batch of chains of which two networks make the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from specpolicy.speculative.chains import Account
from specpolicy.speculative.process import ReverseProcess, per_row
from specpolicy.speculative.randomness import RandomSource
from specpolicy.speculative.trail import Trail

from .result import AsdsvResult


class Courses:
    """B chains on their way from noise to sample, each at its own position.

    Attributes:
        k, x: position and state of each; K when finished.
        output, known: what the target says at ``x``, where it has been asked already.
        passes, evaluations: of the target, in sequence and in rows. draft_passes: of the draft network, in sequence.
        taken: which chains have taken a draft since the last :meth:`note`.
    """

    def __init__(
        self,
        process: ReverseProcess,
        random: RandomSource,
        noise: Tensor,
        begin: int,
        record: bool,
        trail: Trail | None,
    ) -> None:
        self.process, self.random, self.input_dtype = process, random, noise.dtype
        self.x = noise.to(process.a.dtype, copy=True)
        self.k = torch.full((len(noise),), begin, dtype=torch.long, device=noise.device)
        self.output, self.known = torch.zeros_like(self.x), torch.zeros_like(self.k, dtype=torch.bool)
        self.passes, self.evaluations = torch.zeros_like(self.k), torch.zeros_like(self.k)
        self.draft_passes, self.taken = torch.zeros_like(self.k), torch.zeros_like(self.known)
        self.account, self.trail = Account(), trail
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

    def foresee(self, chains: Tensor, output: Tensor) -> None:
        """Remember what the target says at the states that these chains are about to take."""
        self.output[chains], self.known[chains] = output, True

    def note(self, active: Tensor, start: Tensor, proposed: Tensor) -> None:
        """Enter a round of the chains ``active`` into the account."""
        accepted = torch.where(self.taken[active], proposed, 0)
        self.account.add(active, start, proposed, accepted, len(self.k))
        self.taken[:] = False

    def result(self) -> AsdsvResult:
        """Samples and account; the trajectory only once all chains have finished."""
        return AsdsvResult(
            sample=self.x.to(self.input_dtype),
            passes=self.passes.cpu(),
            evaluations=self.evaluations.cpu(),
            **self.account.stacked(len(self.x)),
            trajectory=None if len(self.active()) else self.trajectory,
            draft_passes=self.draft_passes.cpu(),
        )

    def _keep(self, chains: Tensor, where: Tensor, states: Tensor) -> None:
        if self.trail is not None:
            self.trail.keep(where, chains, states)
        if self.trajectory is not None:
            self.trajectory[where, chains] = states
