"""A pipeline's own denoising loop, fed with states that a sampler has found.

The loop of a pipeline asks its network once a step and hands the answer to ``scheduler.step``. While a call runs, both
are replaced: the network's question lets the sampler run ahead in rounds, and ``scheduler.step`` answers with the
chain's next state once every chain of the batch has it. So encoders, callbacks, progress bars, decoders and output
formats stay the pipeline's own, step for step; only the network passes are fewer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from specpolicy.speculative.denoiser import Denoiser
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import Generators

from .chain import PipelineChain, check_scheduler, read_chain
from .families import Arguments, Family, Guidance
from .prediction import Conditions, Forward, GuidedPrediction
from .stretch import RoundSampler, Stretch

Recipe = Callable[[ReverseProcess, Callable[[Forward], Denoiser]], RoundSampler]
"""Makes the sampler of a chain; its second argument turns another network's forward into a prediction like the
target's, guided and conditioned alike."""


class ServedLoop:
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
        self.stretches: list[Stretch] = []
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

    def _begin(self, state: Tensor, guidance: Guidance, given: dict[str, Any]) -> Stretch:
        if self.chain is None:
            clipped = bool(self.arguments.get("use_clipped_model_output"))
            self.chain = read_chain(self.scheduler, self.kind, self.arguments.get("eta", 0.0), clipped)
        chain, conditions = self.chain, Conditions(given, guidance.branches, len(state))

        def predict(forward: Forward) -> GuidedPrediction:
            return GuidedPrediction(forward, self.channels, chain, guidance, conditions)

        sampler = self.recipe(chain.process, predict)
        generator = _generators(self.arguments.get("generator"), len(state))
        return Stretch(sampler, predict(self.forward), state, self.position, generator, self.record)

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
