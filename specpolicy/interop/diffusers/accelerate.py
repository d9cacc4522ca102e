"""ASDSV in a pipeline: a smaller network drafts. Approximate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from specpolicy.approximate.asdsv import AsdsvSampler, DraftSchedule, ThresholdVerifier
from specpolicy.interop.diffusers.families import (
    Arguments,
    Conditions,
    Family,
    Forward,
    Guidance,
    GuidedPrediction,
    PipelineChain,
    UnsupportedPipeline,
    check_scheduler,
    family_of,
    read_chain,
)
from specpolicy.speculative.chain_batch import StateBuffer
from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.drafters.constant import FreeDrafter
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.speculative.verifiers import BlockVerifier, Verifier
from specpolicy.speculative.window import AdaptiveWindow, Window


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
        state_buffer: StateBuffer | None = None,
    ) -> Iterator[Progress]:
        """See :meth:`SpeculativeSampler.rounds`."""
        ...


class ChainSegment:
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
        self._state_buffer = StateBuffer()
        rows = prediction.conditions.rows
        self._rounds = sampler.rounds(prediction, state, rows, generator, record, begin, self._state_buffer)
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
        self.state = self._state_buffer.take(position, self._progress.x).to(self.state.dtype)
        return self.state

    def result(self) -> SampleResult | None:
        """What the sampler has done so far; None if it was never asked."""
        return self._progress.result() if self._progress is not None else None


Recipe = Callable[[ReverseProcess, Callable[[Forward], Denoiser]], RoundSampler]
"""Makes the sampler of a chain; its second argument turns another network's forward into a prediction like the
target's, guided and conditioned alike."""


class PatchedDenoisingLoop:
    """One call of a pipeline, served by a sampler.

    Args:
        pipeline: whose ``__call__`` is about to run. family: its kind. arguments: of the call.
        recipe: makes the sampler. record: whether the account keeps trajectories.

    Raises:
        PipelineRefused: scheduler or network do not fit.
    """

    def __init__(self, pipeline: Any, family: Family, arguments: Arguments, recipe: Recipe, record: bool) -> None:
        self.pipeline, self.family, self.arguments = pipeline, family, arguments
        self.recipe, self.record = recipe, record
        self.network, self.scheduler = getattr(pipeline, family.network), pipeline.scheduler
        self.kind = check_scheduler(self.scheduler, "eta" in arguments, family.scales_input)
        self.channels = family.channels(self.network)
        self.forward: Forward = self.network.forward
        self.chain: PipelineChain | None = None
        self.stretches: list[ChainSegment] = []
        self.position = 0  # of the state that the pipeline holds

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand in for network and scheduler while the block runs."""

        # plain functions, not methods: what copies the scheduler must not copy this loop and its pipeline with it
        @functools.wraps(self.scheduler.step)
        def step(output: Tensor, timestep: Any, sample: Tensor, *_: Any, return_dict: bool = True, **__: Any) -> Any:
            following = self._step(output, sample)
            return SchedulerOutput(prev_sample=following) if return_dict else (following,)

        def forward(sample: Tensor, timestep: Any, **given: Any) -> Any:
            return self._ask(sample, given)

        with ExitStack() as stack:
            stack.enter_context(_replaced(self.network, "forward", forward))
            stack.enter_context(_replaced(self.scheduler, "step", step))
            if self.family.scales_input:  # done where the network is asked
                stack.enter_context(_replaced(self.scheduler, "scale_model_input", lambda sample, *_, **__: sample))
            yield

    def results(self) -> list[SampleResult]:
        """What the sampler did, stretch by stretch."""
        return [result for stretch in self.stretches if (result := stretch.result()) is not None]

    def _ask(self, sample: Tensor, given: dict[str, Any]) -> Any:
        """In the network's place: find the next state, and answer with what the network once said."""
        guidance = self.family.guidance(self.pipeline, self.arguments)
        state = sample[: len(sample) // guidance.branches]
        if not self.stretches or not self.stretches[-1].fits(state, guidance, given):
            # The first step, or a callback has changed something. What was found beyond this state is dropped and the
            # chain goes on with fresh noise: its law is that of a sequential one that was changed here.
            self.stretches.append(self._begin(state, guidance, given))
        self.stretches[-1].advance(self.position + 1)
        return self.stretches[-1].prediction.answer

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
        stretch = self.stretches[-1]
        guided = stretch.prediction.guided
        if guided is not None and len(guided) == len(stretch.state):
            _require_same_guidance(output, guided)
            stretch.prediction.guided = None  # once is enough
        self.position += 1
        state = stretch.state
        return state.repeat(len(sample) // len(state), *[1] * (state.ndim - 1)) if len(sample) > len(state) else state


def _require_same_guidance(theirs: Tensor, ours: Tensor) -> None:
    """The pipeline has combined the branches of the first pass itself: it must have found what is sampled here."""
    same = theirs[: len(ours)]
    if same.shape != ours.shape or not torch.allclose(same.float(), ours.float(), rtol=1e-2, atol=1e-2):
        raise RuntimeError(
            "this pipeline makes another prediction of its network's output than the one that would be sampled, so "
            "that its images would have another law. Its guidance is not known here: restore() the pipeline"
        )


def _generators(given: Any, batch: int) -> Generators:
    """One generator for an image of its own, so that it is the same image in a batch that has a list of them.

    A list of one for a larger batch is what diffusers takes for that one.
    """
    if isinstance(given, torch.Generator):
        return [given] if batch == 1 else given
    return given[0] if given is not None and len(given) == 1 < batch else given


@contextmanager
def _replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """``thing.name = value`` while the block runs, for attributes that are usually the class's."""
    own, before = name in vars(thing), vars(thing).get(name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if own:
            setattr(thing, name, before)
        else:
            delattr(thing, name)


ROW_PRICE = 0.3
"""What a further row costs an image network, in passes: more than a small network, since one image nearly fills a
device. At 0.1 a random network on 3 × 32 × 32 saves 14 of 100 passes for 42 rows more; at 0.3 it goes on much as the
stock one does."""


class Acceleration:
    """A pipeline that samples speculatively until :meth:`restore`, or to the end of a ``with`` block.

    Only ``pipeline.__call__`` is another than before, and network and scheduler while it runs; saving, moving and
    changing components work as ever, also ``pipeline.scheduler = …``.

    Attributes:
        pipeline: the pipeline itself, changed in place.
        exact: whether its images have exactly the law of the stock pipeline's.
        account: of the latest call: passes and rows of each image, rounds, and what was accepted; see
            :class:`~specpolicy.SampleResult`. ``evaluations`` counts states; with guidance each takes two rows of the
            network's batch. None before the first call.
    """

    account: SampleResult | None

    def __init__(self, pipeline: Any, recipe: Recipe, exact: bool, record: bool) -> None:
        stock = type(pipeline)
        if getattr(stock, "_accelerated", False):
            raise UnsupportedPipeline("this pipeline has been accelerated already; restore() it first")
        family = family_of(pipeline)
        signature = inspect.signature(stock.__call__)
        check_scheduler(pipeline.scheduler, "eta" in signature.parameters, family.scales_input)
        family.channels(getattr(pipeline, family.network))
        self.pipeline, self.exact, self.account = pipeline, exact, None
        self._stock = stock

        @functools.wraps(stock.__call__)
        def call(this: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(this, *args, **kwargs)
            bound.apply_defaults()
            loop = PatchedDenoisingLoop(this, family, bound.arguments, recipe, record)
            with loop.installed():
                answer = stock.__call__(this, *args, **kwargs)
            self.account = joined(loop.results())
            return answer

        # __call__ is looked up on the class. The name is kept: it is what save_pretrained writes down.
        changes = {"__call__": call, "__module__": stock.__module__, "__doc__": stock.__doc__, "_accelerated": True}
        object.__setattr__(pipeline, "__class__", type(stock.__name__, (stock,), changes))

    def restore(self) -> None:
        """Make the pipeline the stock one again; a second time changes nothing."""
        object.__setattr__(self.pipeline, "__class__", self._stock)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def accelerate_pipeline(
    pipeline: Any,
    drafter: Drafter | None = None,
    verifier: Verifier | None = None,
    window: Window | None = None,
    record: bool = False,
) -> Acceleration:
    """Let a stock diffusers pipeline sample speculatively; its images keep exactly their law.

    Works for the pipelines in :data:`FAMILIES` with DDPM, DDIM (``eta`` > 0) and ancestral Euler steps; classifier-free
    guidance is part of the prediction, and doubles rows, not passes. Arguments and results of the pipeline's call stay
    as they are. The same seed gives other images than the stock pipeline: of the same law, from other random numbers.
    A callback may read each state and may change it, or the guidance; the chain then goes on from there, a pass dearer.

    Args:
        pipeline: changed in place until :meth:`Acceleration.restore`.
        drafter, verifier: any pair; by default those of :class:`~specpolicy.SpeculativeSampler`.
        window: by default one that adapts, since acceptance falls with the size of an image: where no draft has
            hope it costs as many passes and rows as the stock pipeline. ``AdaptiveWindow(min_acceptance=…)`` sets the
            price of a row.
        record: keep all states and x̂0 in the account.

    Raises:
        PipelineRefused: pipeline, scheduler or network do not fit; the message says why. What depends on the
            arguments of a call, such as ``eta``, is said by the call.
    """
    window = AdaptiveWindow(min_acceptance=ROW_PRICE) if window is None else window
    drafter, verifier = drafter or FreeDrafter(), verifier or BlockVerifier()
    if not isinstance(verifier, Verifier):
        raise TypeError(f"{type(verifier).__name__} does not verify draws; for a threshold see approximate()")
    return Acceleration(
        pipeline,
        lambda process, _: SpeculativeSampler(process, drafter, verifier, window),
        verifier.exact,
        record,
    )


def joined(results: list[SampleResult]) -> SampleResult | None:
    """One account of several stretches of the same chains; trajectories are kept if there was but one stretch."""
    if len(results) < 2:
        return results[0] if results else None

    def rounds(name: str) -> Tensor | None:
        parts = [getattr(result, name) for result in results]
        return None if any(part is None for part in parts) else torch.cat(parts)

    spent: dict[str, Any] = {
        name: torch.stack([getattr(result, name) for result in results]).sum(0)
        for name in ("passes", "evaluations", "draft_passes")
        if hasattr(results[-1], name)
    }
    followed: dict[str, Any] = {name: rounds(name) for name in ("start", "proposed", "accepted")}
    return replace(results[-1], trajectory=None, x0=None, **spent, **followed)


def approximate(
    pipeline: Any, draft: Any, verifier: ThresholdVerifier, stages: DraftSchedule | None = None, record: bool = False
) -> Acceleration:
    """Let a smaller network draft the steps of a stock pipeline. *Not exact*: the images have another law.

    Args:
        pipeline: changed in place until :meth:`Acceleration.restore`; see :func:`accelerate`.
        draft: a network for the same states and conditions and of the same prediction type as the pipeline's, on the
            same device: a smaller ``UNet2DModel`` beside a ``UNet2DModel``. It is guided as the pipeline's is.
        verifier: how close its predictions must be. stages: who makes which steps.
        record: keep all states in the account.

    Raises:
        PipelineRefused: pipeline, scheduler or a network do not fit.
    """
    family_of(pipeline).channels(draft)
    return Acceleration(
        pipeline, lambda process, predict: AsdsvSampler(process, predict(draft), verifier, stages), False, record
    )
