"""Stock diffusers pipelines with cached tokens. Approximate."""

from __future__ import annotations

import functools
import inspect
import re
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .chain import CachedChain
from .families import Family, find_network
from .hook import replaced
from .sampler import cached
from .settings import CacheSettings, CachingError
from .speculation import course_of

_EXTRA = re.compile("controlnet|skip_layers")  # what changes hidden states between blocks, or leaves blocks out


@dataclass(frozen=True)
class CachingAccount:
    """Of one call of a pipeline.

    Attributes:
        passes: of the network, speculative ones included. work: the same, each weighed by the share of the tokens that
            it computed.
    """

    passes: int
    work: float


class Caching:
    """A pipeline whose network computes a part of its tokens until :meth:`restore`, or to the end of a ``with`` block.

    Only ``pipeline.__call__`` is another than before, and the network while it runs; each call begins with an empty
    cache. Scheduler, guidance, callbacks and random numbers are the pipeline's own. *Not exact*: the images are near
    those of the stock pipeline from the same seed, and the same with ``ratio=0``.

    Attributes:
        pipeline: the pipeline itself, changed in place.
        exact: False.
        account: of the latest call; None before the first.
    """

    exact: bool = False
    account: CachingAccount | None = None

    def __init__(self, pipeline: Any, settings: CacheSettings) -> None:
        stock = type(pipeline)
        if getattr(stock, "_caches", False) or getattr(stock, "_accelerated", False):
            raise CachingError("this pipeline is cached or accelerated already; restore() it first")
        if not hasattr(pipeline, "transformer"):
            raise CachingError(f"{stock.__name__} has no transformer, so it has no tokens to cache")
        _check(*find_network(pipeline.transformer))
        if settings.speculative:
            course_of(pipeline.scheduler)
        self.pipeline, self.settings, self._stock = pipeline, settings, stock

        @functools.wraps(stock.__call__)
        def call(this: Any, *args: Any, **kwargs: Any) -> Any:
            course = course_of(this.scheduler) if settings.speculative else None
            network, family = find_network(this.transformer)
            with cached(network, settings, course) as chain:
                serve = _served(network, family, this, chain)
                with replaced(network, "forward", serve):
                    answer = stock.__call__(this, *args, **kwargs)
                self.account = CachingAccount(chain.passes, chain.work)
            return answer

        # __call__ is looked up on the class. The name is kept: it is what save_pretrained writes down.
        changes = {"__call__": call, "__module__": stock.__module__, "__doc__": stock.__doc__, "_caches": True}
        object.__setattr__(pipeline, "__class__", type(stock.__name__, (stock,), changes))

    def restore(self) -> None:
        """Make the pipeline the stock one again; a second time changes nothing."""
        object.__setattr__(self.pipeline, "__class__", self._stock)

    def __enter__(self) -> Caching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def cache(pipeline: Any, ratio: float = 0.5, copied: float = 0.1, speculative: int = 2) -> Caching:
    """Let a stock pipeline with a DiT, SD3 or FLUX transformer compute a part of its tokens. *Not exact.*

    >>> with cache(pipeline, ratio=0.6) as caching:
    ...     image = pipeline(prompt).images[0]
    >>> caching.account.work

    The prompt's tokens are always computed. Rows of a batch, guidance branches included, choose tokens by themselves.

    Args:
        pipeline: changed in place until :meth:`Caching.restore`.
        ratio, copied, speculative: see :class:`CacheSettings`.

    Raises:
        CachingError: the pipeline's network or scheduler does not fit, or its attention is not diffusers' own. A
            pipeline that asks its network twice a step is refused by the call.
        ValueError: a setting is out of its range.
    """
    return Caching(pipeline, CacheSettings(ratio, copied, speculative))


def _check(network: Any, family: Family) -> None:
    """Let the cache in and out once, so that a network that does not fit is refused at once."""
    with ExitStack() as stack:
        family.install(network, lambda: CachedChain(CacheSettings(speculative=0), None).tokens, stack)


def _served(network: Any, family: Family, pipeline: Any, chain: CachedChain) -> Any:
    """In the place of the network's ``forward``: the same, through ``chain``."""
    forward = network.forward
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def serve(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        extra = {name for name, value in given.items() if _EXTRA.search(name) and value is not None}
        if extra:
            raise CachingError(f"{sorted(extra)} of a pass cannot be cached")
        sample, timestep = given["hidden_states"], given["timestep"]
        told = float(timestep.flatten()[0]) * family.times
        if not bool((timestep == timestep.flatten()[0]).all()):
            raise CachingError("the rows of a pass stand at different times; caching wants one time for all of them")
        answers: list[Any] = []

        def ask(state: Tensor, time: float) -> Tensor:
            when = torch.full_like(timestep, time / family.times) if answers else timestep
            answers.append(forward(**given | {"hidden_states": state, "timestep": when}))
            return answers[-1][0][:, : state.shape[1]]  # a learned variance is no part of the course

        times = [float(time) for time in pipeline.scheduler.timesteps]
        now = min(times, key=lambda time: abs(time - told))  # the network is told in its own precision
        chain.step(ask, sample, [now, *(time for time in times if time < now)])
        return answers[0]

    return serve
