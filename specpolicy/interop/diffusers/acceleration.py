"""Switching a pipeline to speculative sampling, and back."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from specpolicy.speculative.drafters import Drafter, FreeDrafter
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.speculative.verifiers import BlockVerifier, Verifier
from specpolicy.speculative.window import AdaptiveWindow, Window

from .chain import check_scheduler
from .families import family_of
from .loop import Recipe, ServedLoop
from .refusal import PipelineRefused

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
            raise PipelineRefused("this pipeline has been accelerated already; restore() it first")
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
            loop = ServedLoop(this, family, bound.arguments, recipe, record)
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


def accelerate(
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
            hope it costs as many passes and rows as the stock pipeline. ``AdaptiveWindow(worth=…)`` sets the price of
            a row.
        record: keep all states and x̂0 in the account.

    Raises:
        PipelineRefused: pipeline, scheduler or network do not fit; the message says why. What depends on the
            arguments of a call, such as ``eta``, is said by the call.
    """
    window = AdaptiveWindow(worth=ROW_PRICE) if window is None else window
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
