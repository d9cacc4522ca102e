"""One call of a pipeline whose states come from a sampler: what stands in for its network and its scheduler."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from specpolicy.interop.diffusers.families import (
    Arguments,
    Conditions,
    Family,
    Forward,
    Guidance,
    GuidedPrediction,
    PipelineChain,
    check_scheduler,
    read_chain,
)
from specpolicy.speculative.chain_batch import StateBuffer
from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.result import SampleResult
from specpolicy.utils.attributes import replaced


class Progress(Protocol):
    """Chains under way: the position ``k`` and the state ``x`` of each."""

    @property
    def k(self) -> Tensor:
        """Position of each chain, shape ``(b,)``."""
        ...

    @property
    def x(self) -> Tensor:
        """State of each chain, shape ``(b, *event)``."""
        ...

    def result(self) -> SampleResult:
        """Return samples and account."""
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
        state_buffer: StateBuffer | None = None,
    ) -> Iterator[Progress]:
        """See :meth:`SpeculativeSampler.rounds`."""
        ...


class ChainSegment:
    """The chains of a batch from one position on, until something outside them changes.

    Args:
        sampler: runs ahead of the states that the pipeline asks for.
        prediction: what it samples.
        state: of all chains at position ``begin``.
        begin: position in the chain.
        generator: as for the sampler.
        record: likewise.
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
        self._state_buffer = StateBuffer()
        rows = prediction.conditions.rows
        self._rounds = sampler.rounds(prediction, state, rows, generator, record, begin, self._state_buffer)
        self._progress: Progress | None = None

    def fits(self, state: Tensor, guidance: Guidance, given: Mapping[str, Any]) -> bool:
        """Say whether this segment continues from ``state``.

        Args:
            state: that the pipeline asks its network about.
            guidance: as it is now.
            given: the network's keyword arguments.

        Returns:
            False if something has changed it, or the guidance, or the conditions.
        """
        return (
            guidance == self.prediction.guidance
            and self.prediction.conditions.same(given)
            and state.shape == self.state.shape
            and torch.equal(state, self.state)
        )

    def advance(self, position: int) -> Tensor:
        """Run the sampler until all chains have reached a position.

        Args:
            position: in the chain.

        Returns:
            The state there, in the dtype of the first.
        """
        while self._progress is None or int(self._progress.k.min()) < position:
            self._progress = next(self._rounds)
        self.state = self._state_buffer.take(position, self._progress.x).to(self.state.dtype)
        return self.state

    def result(self) -> SampleResult | None:
        """Return what the sampler has done so far; None if it was never asked."""
        return self._progress.result() if self._progress is not None else None


class Recipe(Protocol):
    """Makes the sampler of a chain. It travels with a pipeline that is pickled or copied."""

    def __call__(self, process: ReverseProcess, predict: Callable[[Forward], Denoiser]) -> RoundSampler:
        """Make it.

        Args:
            process: the chain.
            predict: turns another network's forward into a prediction like the target's, guided and conditioned alike.

        Returns:
            The sampler.
        """
        ...


class PatchedDenoisingLoop:
    """One call of a pipeline, served by a sampler.

    Args:
        pipeline: whose ``__call__`` is about to run.
        family: its kind.
        arguments: of the call.
        recipe: makes the sampler.
        record: whether the account keeps trajectories.

    Raises:
        UnsupportedPipeline: scheduler or network do not fit.
    """

    def __init__(self, pipeline: Any, family: Family, arguments: Arguments, recipe: Recipe, record: bool) -> None:
        self.pipeline, self.family, self.arguments = pipeline, family, arguments
        self.recipe, self.record = recipe, record
        self.network, self.scheduler = getattr(pipeline, family.network), pipeline.scheduler
        self.kind = check_scheduler(self.scheduler, "eta" in arguments, family.scales_input)
        self.channels = family.channels(self.network)
        self.forward: Forward
        self.chain: PipelineChain | None = None
        self.segments: list[ChainSegment] = []
        self.position = 0  # of the state that the pipeline holds

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand in for network and scheduler while the block runs; for this thread alone.

        Other threads that use network or scheduler get the stock ones, or wait if they run an accelerated call.
        """
        with ExitStack() as stack:
            for lock in _locks_of(self.network, self.scheduler):
                stack.enter_context(lock)
            owner, stock_step = threading.get_ident(), self.scheduler.step
            stock_scale = getattr(self.scheduler, "scale_model_input", None)
            self.forward = stock_forward = self.network.forward

            # plain functions, not methods: what copies the scheduler must not copy this loop and its pipeline with it
            @functools.wraps(stock_step)
            def step(output: Tensor, timestep: Any, sample: Tensor, *args: Any, **given: Any) -> Any:
                if threading.get_ident() != owner:
                    return stock_step(output, timestep, sample, *args, **given)
                following = self._step(output, sample)
                return SchedulerOutput(prev_sample=following) if given.get("return_dict", True) else (following,)

            def forward(sample: Tensor, timestep: Any, **given: Any) -> Any:
                if threading.get_ident() != owner:
                    return stock_forward(sample, timestep, **given)
                return self._ask(sample, given)

            def scale_model_input(sample: Tensor, *args: Any, **given: Any) -> Any:
                if threading.get_ident() != owner and stock_scale is not None:
                    return stock_scale(sample, *args, **given)
                return sample

            stack.enter_context(replaced(self.network, "forward", forward))
            stack.enter_context(replaced(self.scheduler, "step", step))
            if self.family.scales_input:  # done where the network is asked
                stack.enter_context(replaced(self.scheduler, "scale_model_input", scale_model_input))
            yield

    def results(self) -> list[SampleResult]:
        """Return what the sampler did, segment by segment."""
        return [result for segment in self.segments if (result := segment.result()) is not None]

    def _ask(self, sample: Tensor, given: dict[str, Any]) -> Any:
        """In the network's place: find the next state, and answer with what the network once said."""
        guidance = self.family.guidance(self.pipeline, self.arguments)
        state = sample[: len(sample) // guidance.branches]
        if not self.segments or not self.segments[-1].fits(state, guidance, given):
            # The first step, or a callback has changed something. What was found beyond this state is dropped and the
            # chain goes on with fresh noise, as a sequential one that was changed here.
            self.segments.append(self._begin(state, guidance, given))
        self.segments[-1].advance(self.position + 1)
        return self.segments[-1].prediction.answer

    def _begin(self, state: Tensor, guidance: Guidance, given: dict[str, Any]) -> ChainSegment:
        if self.chain is None:
            clipped = bool(self.arguments.get("use_clipped_model_output"))
            self.chain = read_chain(self.scheduler, self.kind, self.arguments.get("eta", 0.0), clipped)
        chain, conditions = self.chain, Conditions(given, guidance.branches, len(state))

        def predict(forward: Forward) -> GuidedPrediction:
            return GuidedPrediction(forward, self.channels, chain, guidance, conditions)

        sampler = self.recipe(chain.process, predict)
        generator = _generators(self.arguments.get("generator"), len(state))
        return ChainSegment(sampler, predict(self.forward), state, self.position, generator, self.record)

    def _step(self, output: Tensor, sample: Tensor) -> Tensor:
        """In the scheduler's place: the next state, as often as the pipeline holds it."""
        segment = self.segments[-1]
        guided = segment.prediction.guided
        if guided is not None and len(guided) == len(segment.state):
            _require_same_guidance(output, guided)
            segment.prediction.guided = None  # once is enough
        self.position += 1
        state = segment.state
        return state.repeat(len(sample) // len(state), *[1] * (state.ndim - 1)) if len(sample) > len(state) else state


_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def _locks_of(*parts: Any) -> list[Any]:
    """The locks of networks and schedulers, which pipelines may share, in an order that is everywhere the same."""
    with _LOCKS_LOCK:
        return [_LOCKS.setdefault(part, threading.RLock()) for part in sorted(parts, key=id)]


def _require_same_guidance(theirs: Tensor, ours: Tensor) -> None:
    """Compare with the first prediction, whose branches the pipeline has combined itself."""
    same = theirs[: len(ours)]
    if same.shape != ours.shape or not torch.allclose(same.float(), ours.float(), rtol=1e-2, atol=1e-2):
        raise RuntimeError(
            "this pipeline makes another prediction of its network's output than the one that would be sampled, so "
            "that its images would have another distribution. Its guidance is not known here: restore() the pipeline"
        )


def _generators(given: Any, batch: int) -> Generators:
    """One generator for an image of its own, so that it is the same image in a batch that has a list of them.

    A list of one for a larger batch is what diffusers takes for that one.
    """
    if isinstance(given, torch.Generator):
        return [given] if batch == 1 else given
    return given[0] if given is not None and len(given) == 1 < batch else given
