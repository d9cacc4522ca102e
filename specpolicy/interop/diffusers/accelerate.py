"""Sample a diffusers pipeline speculatively: its own loop runs, its states come from a sampler of this library."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from specpolicy.approximate.asdsv import AsdsvSampler, DraftSchedule, ThresholdVerifier
from specpolicy.interop.diffusers.denoising_loop import PatchedDenoisingLoop, Recipe, RoundSampler
from specpolicy.interop.diffusers.families import (
    Forward,
    UnsupportedPipeline,
    check_scheduler,
    family_of,
)
from specpolicy.speculative.denoiser import Denoiser
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.drafters.constant import FreeDrafter
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.speculative.verifiers import BlockVerifier, Verifier
from specpolicy.speculative.window import AdaptiveWindow, Window


@dataclass(frozen=True)
class SpeculativeRecipe:
    """Exact speculation; see :class:`~specpolicy.SpeculativeSampler`."""

    drafter: Drafter
    verifier: Verifier
    window: Window

    def __call__(self, process: ReverseProcess, predict: Callable[[Forward], Denoiser]) -> RoundSampler:
        """Make the sampler; see :class:`Recipe`."""
        return SpeculativeSampler(process, self.drafter, self.verifier, self.window)


@dataclass(frozen=True)
class AsdsvRecipe:
    """Drafts of a smaller network; see :class:`~specpolicy.approximate.AsdsvSampler`."""

    draft: Any
    verifier: ThresholdVerifier
    schedule: DraftSchedule | None

    def __call__(self, process: ReverseProcess, predict: Callable[[Forward], Denoiser]) -> RoundSampler:
        """Make the sampler; see :class:`Recipe`."""
        return AsdsvSampler(process, predict(self.draft), self.verifier, self.schedule)


ROW_PRICE = 0.3
"""Cost of a further row of an image network, in sequential evaluations: higher than for a small network, since one
image nearly fills a device. At 0.1 a random network on 3 × 32 × 32 saves 14 of 100 evaluations for 42 rows more; at
0.3 it costs about what the stock pipeline does."""


class Acceleration:
    """A pipeline that samples speculatively until :meth:`restore`, or to the end of a ``with`` block.

    Only ``pipeline.__call__`` differs from before, and network and scheduler while it runs; saving, pickling, copying,
    moving and changing components work as ever, also ``pipeline.scheduler = …``. A pickled or copied pipeline is
    accelerated again in the same way; see :func:`acceleration_of`. Calls from several threads take turns.

    Args:
        pipeline: changed in place.
        recipe: makes the sampler of a call.
        exact: whether the images follow the stock pipeline's distribution.
        record: whether the account keeps trajectories.

    Attributes:
        pipeline: the pipeline itself.
        exact: as given.

    Raises:
        UnsupportedPipeline: pipeline, scheduler or network do not fit.
    """

    def __init__(self, pipeline: Any, recipe: Recipe, exact: bool, record: bool) -> None:
        stock = type(pipeline)
        if acceleration_of(pipeline) is not None:
            raise UnsupportedPipeline("this pipeline has been accelerated already; restore() it first")
        family = family_of(pipeline)
        signature = inspect.signature(stock.__call__)
        check_scheduler(pipeline.scheduler, "eta" in signature.parameters, family.scales_input)
        family.channels(getattr(pipeline, family.network))
        self.pipeline, self.exact = pipeline, exact
        self._stock, self._latest, self._own = stock, None, threading.local()

        @functools.wraps(stock.__call__)
        def call(this: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(this, *args, **kwargs)
            bound.apply_defaults()
            loop = PatchedDenoisingLoop(this, family, bound.arguments, recipe, record)
            with loop.installed():
                answer = stock.__call__(this, *args, **kwargs)
            self._latest = self._own.account = joined(loop.results())
            return answer

        def reduce(this: Any, protocol: Any) -> Any:
            plain = object.__new__(stock)
            plain.__dict__.update(vars(this))
            return _accelerated, (plain, recipe, exact, record)

        # __call__ is looked up on the class. The name is kept: it is what save_pretrained writes down.
        changes = {
            "__call__": call,
            "__reduce_ex__": reduce,
            "__module__": stock.__module__,
            "__doc__": stock.__doc__,
            "_acceleration": self,
        }
        object.__setattr__(pipeline, "__class__", type(stock.__name__, (stock,), changes))

    @property
    def account(self) -> SampleResult | None:
        """What the latest call cost: network evaluations, rows and acceptance of each image; None before the first.

        In a thread that has called the pipeline it is that thread's latest call. ``evaluations`` counts states; with
        guidance each takes two rows of the network's batch.
        """
        return getattr(self._own, "account", self._latest)

    def restore(self) -> None:
        """Make the pipeline the stock one again; a second time changes nothing."""
        object.__setattr__(self.pipeline, "__class__", self._stock)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __reduce__(self) -> Any:
        return acceleration_of, (self.pipeline,)


def acceleration_of(pipeline: Any) -> Acceleration | None:
    """Find the handle of an accelerated pipeline, e.g. of one that came out of a pickle.

    Args:
        pipeline: any.

    Returns:
        What :func:`accelerate` returned for it, or made anew for a copy; None for a stock pipeline.
    """
    return getattr(type(pipeline), "_acceleration", None)


def _accelerated(pipeline: Any, recipe: Recipe, exact: bool, record: bool) -> Any:
    """Accelerate a pipeline that has been pickled or copied while it was."""
    Acceleration(pipeline, recipe, exact, record)
    return pipeline


def accelerate_pipeline(
    pipeline: Any,
    drafter: Drafter | None = None,
    verifier: Verifier | None = None,
    window: Window | None = None,
    record: bool = False,
) -> Acceleration:
    """Let a stock diffusers pipeline sample speculatively; its images keep exactly their distribution.

    Works for the pipelines in :data:`FAMILIES` with DDPM, DDIM (``eta`` > 0) and ancestral Euler steps; classifier-free
    guidance is part of the prediction, and doubles rows, not sequential evaluations. Arguments and results of the
    pipeline's call stay as they are. The same seed gives other images than the stock pipeline: of the same
    distribution, from other random numbers. A callback may read each state and may change it, or the guidance; the
    chain then goes on from there, which costs one evaluation more.

    Args:
        pipeline: changed in place until :meth:`Acceleration.restore`.
        drafter: by default that of :class:`~specpolicy.SpeculativeSampler`.
        verifier: likewise.
        window: by default one that adapts, since acceptance falls with the size of an image: where drafts would be
            rejected it costs as many evaluations and rows as the stock pipeline. ``AdaptiveWindow(min_acceptance=…)``
            sets the price of a row.
        record: keep all states and x̂0 in the account.

    Returns:
        A handle with the account of each call, which restores the pipeline.

    Raises:
        TypeError: the verifier is not exact.
        UnsupportedPipeline: pipeline, scheduler or network do not fit; the message says why. What depends on the
            arguments of a call, such as ``eta``, is said by the call.
    """
    window = AdaptiveWindow(min_acceptance=ROW_PRICE) if window is None else window
    drafter, verifier = drafter or FreeDrafter(), verifier or BlockVerifier()
    if not isinstance(verifier, Verifier):
        raise TypeError(f"{type(verifier).__name__} does not verify draws; for a threshold see approximate()")
    return Acceleration(pipeline, SpeculativeRecipe(drafter, verifier, window), verifier.exact, record)


def joined(results: list[SampleResult]) -> SampleResult | None:
    """Join the accounts of successive segments of the same chains; trajectories are kept if there was but one.

    Args:
        results: in order.

    Returns:
        One account; None if there are no results.
    """
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
    pipeline: Any, draft: Any, verifier: ThresholdVerifier, schedule: DraftSchedule | None = None, record: bool = False
) -> Acceleration:
    """Let a smaller network draft the steps of a stock pipeline. *Not exact*: the images have another distribution.

    Args:
        pipeline: changed in place until :meth:`Acceleration.restore`; see :func:`accelerate`.
        draft: a network for the same states and conditions and of the same prediction type as the pipeline's, on the
            same device: a smaller ``UNet2DModel`` beside a ``UNet2DModel``. It is guided as the pipeline's is.
        verifier: how close its predictions must be.
        schedule: which steps are drafted.
        record: keep all states in the account.

    Returns:
        A handle with the account of each call, which restores the pipeline.

    Raises:
        UnsupportedPipeline: pipeline, scheduler or a network do not fit.
    """
    family_of(pipeline).channels(draft)
    return Acceleration(pipeline, AsdsvRecipe(draft, verifier, schedule), False, record)
