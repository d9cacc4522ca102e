"""Sampling a policy, or any module with a known network in it, with cached tokens. Approximate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from specpolicy.speculative.baseline import SchedulerSampler
from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.sampler import Generators, SequentialSampler

from .chain import CachedChain
from .families import find_network
from .result import CachedResult
from .settings import CacheSettings
from .speculation import Course


@contextmanager
def cached(denoiser: Any, settings: CacheSettings, course: Course | None) -> Iterator[CachedChain]:
    """Let a cache into the network of ``denoiser`` while the block runs, for one chain.

    Calls within the block must go through :meth:`CachedChain.step`, and not come from several threads.

    Raises:
        CachingError: no network in ``denoiser`` has tokens to cache.
    """
    network, family = find_network(denoiser)
    chain = CachedChain(settings, course)
    with ExitStack() as stack:
        family.install(network, lambda: chain.tokens, stack)
        yield chain


class CachedSampler:
    """Another sampler's chain, step for step, whose passes compute a part of the tokens. Approximate.

    *Not exact*: features of tokens that are not computed are copied or extrapolated, and other tokens see their old
    keys and values. Only with ``ratio=0`` are the samples those of ``inner``.

    Args:
        inner: makes the steps, one pass each.
        settings: how much to compute.
        course: how the speculative steps go ahead; not needed without them.
    """

    exact: bool = False

    def __init__(
        self, inner: SequentialSampler | SchedulerSampler, settings: CacheSettings, course: Course | None = None
    ) -> None:
        self.inner, self.settings, self.course = inner, settings, course
        times = inner.scheduler.timesteps if isinstance(inner, SchedulerSampler) else inner.process.timesteps
        self._times = [float(time) for time in times]

    def __repr__(self) -> str:
        return f"CachedSampler({self.inner!r}, {self.settings}, approximate)"

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
    ) -> CachedResult:
        """Sample one chain for each row of ``noise``; arguments as for ``inner``.

        Each row chooses its own tokens, as many as the others, so that a sample does not depend on its neighbours.

        Raises:
            CachingError: the denoiser's network has no tokens to cache.
            DenoiserError: the network returned NaN, infinity or another shape.
        """
        left = list(self._times)
        with cached(denoiser, self.settings, self.course) as chain:

            def serve(x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
                def ask(state: Tensor, time: float) -> Tensor:
                    return denoiser(state, torch.full_like(timestep, time), cond)

                output = chain.step(ask, x, left)
                del left[0]
                return output

            result = self.inner(serve, noise, cond=cond, generator=generator, record=record)
        ahead = chain.passes - result.passes
        known = {each.name: getattr(result, each.name) for each in fields(result)}
        known |= {"passes": result.passes + ahead, "evaluations": result.evaluations + ahead}
        return CachedResult(**known, work=torch.full((len(noise),), chain.work))
