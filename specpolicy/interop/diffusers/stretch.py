"""A stretch of a chain that is sampled under the same circumstances from beginning to end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import Generators
from specpolicy.speculative.trail import Trail

from .families import Guidance
from .prediction import GuidedPrediction


class Progress(Protocol):
    """Chains on their way: the position ``k`` and the state ``x`` of each."""

    k: Tensor
    x: Tensor

    def result(self) -> SampleResult:
        """Samples and account."""
        ...


class RoundSampler(Protocol):
    """A sampler whose rounds can be followed."""

    exact: bool

    def rounds(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        begin: int = 0,
        trail: Trail | None = None,
    ) -> Iterator[Progress]:
        """See :meth:`SpeculativeSampler.rounds`."""
        ...


class Stretch:
    """The chains of a batch from one position on, until something outside them changes.

    Args:
        sampler: runs ahead of whoever asks for states. prediction: what it samples.
        state: of all chains at position ``begin``. generator, record: as for the sampler.
    """

    def __init__(
        self,
        sampler: RoundSampler,
        prediction: GuidedPrediction,
        state: Tensor,
        begin: int,
        generator: Generators,
        record: bool,
    ) -> None:
        self.prediction, self.state, self._begin = prediction, state, begin
        self._trail = Trail()
        rows = prediction.conditions.rows
        self._rounds = sampler.rounds(prediction, state, rows, generator, record, begin, self._trail)
        self._progress: Progress | None = None

    def fits(self, state: Tensor, guidance: Guidance, given: Mapping[str, Any]) -> bool:
        """Whether a question about ``state`` is one that this stretch can go on answering."""
        return (
            guidance == self.prediction.guidance
            and self.prediction.conditions.same(given)
            and state.shape == self.state.shape
            and torch.equal(state, self.state)
        )

    def advance(self, position: int) -> Tensor:
        """The state of all chains at ``position``, in the dtype of the first: the sampler runs until it is known."""
        while self._progress is None or int(self._progress.k.min()) < position:
            self._progress = next(self._rounds)
        self.state = self._trail.take(position, self._progress.x).to(self.state.dtype)
        return self.state

    def result(self) -> SampleResult | None:
        """What the sampler has done so far; None if it was never asked."""
        return self._progress.result() if self._progress is not None else None
