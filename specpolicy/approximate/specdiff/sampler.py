"""Stock diffusers pipelines with cached tokens. Approximate."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.approximate.specdiff.families import CachedFamily, find_network
from specpolicy.approximate.specdiff.importance import (
    CacheSettings,
    CachingError,
    DenoisingTrajectory,
    look_ahead_steps,
    trajectory_of,
)
from specpolicy.approximate.specdiff.token_cache import TokenCache
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.samplers import Trained, ddim, sequential
from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SequentialSampler
from specpolicy.speculative.sampler_call import Noise
from specpolicy.speculative.scheduler_sampler import SchedulerSampler
from specpolicy.utils.attributes import replaced


@dataclass(frozen=True)
class CachedResult(SampleResult):
    """As :class:`SampleResult`; NFE and rows contain the speculative ones.

    Attributes:
        work: evaluations of each chain, each weighted by the share of the tokens that it computed, shape ``(B,)``.
    """

    work: Float[Tensor, " b"] | None = None


Ask: TypeAlias = Callable[[Tensor, float], Tensor]
"""Asks the network at a state and a scheduler's time; the answer has the shape of the state."""


class CachedChain:
    """Network evaluations of one batch of chains at the same time; the network's layers answer to :attr:`tokens`.

    The first evaluation computes all tokens; its answer is what the speculative steps follow. Later ones compute as
    many as the settings say.

    Args:
        settings: how much to compute. course: how to look ahead; may be None without speculative steps.

    Attributes:
        tokens: the cache of the chain that goes on.
        passes: network evaluations so far, speculative ones included.
        work: the same in whole evaluations: one that computes half of the tokens counts as half.
    """

    def __init__(self, settings: CacheSettings, course: DenoisingTrajectory | None) -> None:
        self.settings, self.course = settings, course
        self.tokens = TokenCache(settings)
        self.passes, self.work = 0, 0.0
        self._seen: list[tuple[float, Float[Tensor, "b tokens"]]] = []
        self._last: float | None = None
        self._shape: tuple[int, ...] | None = None

    def step(self, ask: Ask, x: Float[Tensor, "b ..."], times: Sequence[float]) -> Float[Tensor, "b ..."]:
        """Evaluate the network at ``x``.

        Args:
            ask: evaluates it.
            x: the state.
            times: the scheduler's times from now on, the present one first.

        Returns:
            The network's output.

        Raises:
            CachingError: the time has not fallen since the last evaluation, whose cache would not be this one's.
        """
        now = times[0]
        if self._shape != tuple(x.shape):  # guidance was switched on or off: what is cached has other rows
            self.tokens, self._seen, self._last = TokenCache(self.settings), [], None
            self._shape = tuple(x.shape)
        if self._last is not None and not now < self._last:
            raise CachingError(
                f"an evaluation at time {now:g} after one at {self._last:g}: caching needs one a step, at falling times"
                ". Pipelines that ask their network twice a step, and solvers that go back, cannot be cached"
            )
        first, self._last = self._last is None, now
        output = self._pass(ask, x, now)
        if first:
            for time in look_ahead_steps(times, self.settings.speculative):
                self._look(ask, x, output, now, time)
        return output

    def _pass(self, ask: Ask, x: Tensor, now: float) -> Tensor:
        nearest = min(self._seen, key=lambda seen: abs(seen[0] - now), default=None)
        self.tokens.begin(now, None if nearest is None else nearest[1])
        output = ask(x, now)
        self.tokens.end()
        levels, served = self.tokens.levels, self.tokens.served
        assert served is not None
        self.passes += 1
        self.work += 1.0 if levels is None else levels.computed.shape[1] / served.shape[1]
        return output

    def _look(self, ask: Ask, x: Tensor, output: Tensor, now: float, then: float) -> None:
        if self.course is None:
            raise CachingError("speculative steps need to know the course of a trajectory; give one, or speculative=0")
        ahead = self.course.jump(x.float(), output.float(), now, then).to(x.dtype)
        self.tokens.begin(then, keep=False)
        ask(ahead, then)
        self._seen.append((then, self.tokens.end()))
        self.passes, self.work = self.passes + 1, self.work + 1.0


@contextmanager
def cached(denoiser: Any, settings: CacheSettings, course: DenoisingTrajectory | None) -> Iterator[CachedChain]:
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
    """Another sampler's chain, step for step, whose evaluations compute a part of the tokens. Approximate.

    *Not exact*: features of tokens that are not computed are copied or extrapolated, and other tokens see their old
    keys and values. Only with ``ratio=0`` are the samples those of ``inner``.

    Args:
        inner: makes the steps, one pass each.
        settings: how much to compute.
        course: how the speculative steps go ahead; not needed without them.
    """

    exact: bool = False

    def __init__(
        self,
        inner: SequentialSampler | SchedulerSampler,
        settings: CacheSettings,
        course: DenoisingTrajectory | None = None,
    ) -> None:
        self.inner, self.settings, self.course = inner, settings, course
        times = inner.scheduler.timesteps if isinstance(inner, SchedulerSampler) else inner.process.timesteps
        self._times = [float(time) for time in times]

    def __repr__(self) -> str:
        return f"CachedSampler({self.inner!r}, {self.settings}, approximate)"

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
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


def specdiff(
    policy: Trained,
    num_inference_steps: int,
    ratio: float = 0.5,
    copied: float = 0.1,
    speculative: int = 2,
    eta: float | None = None,
) -> CachedSampler:
    """Make a chain whose evaluations take part of the action tokens from a cache, after SpecDiff. Approximate.

    Args:
        policy: with a transformer network; or the scheduler of a pipeline with one.
        num_inference_steps: K.
        ratio: see :class:`CacheSettings`.
        copied: likewise.
        speculative: likewise.
        eta: None for the DDPM chain, otherwise DDIM's.

    Raises:
        CachingError: the policy's network has no tokens.
        ValueError: a setting is out of its range.
    """
    scheduler = policy
    if isinstance(policy, DiffusionPolicy):
        find_network(policy)
        scheduler = policy.scheduler
    steps = sequential(policy, num_inference_steps) if eta is None else ddim(policy, num_inference_steps, eta)
    return CachedSampler(steps, CacheSettings(ratio, copied, speculative), trajectory_of(scheduler))


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
            trajectory_of(pipeline.scheduler)
        self.pipeline, self.settings, self._stock = pipeline, settings, stock

        @functools.wraps(stock.__call__)
        def call(this: Any, *args: Any, **kwargs: Any) -> Any:
            course = trajectory_of(this.scheduler) if settings.speculative else None
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
    """Let a stock pipeline with a DiT, SD3 or FLUX transformer compute a part of its tokens. Not exact.

    >>> with cache(pipeline, ratio=0.6) as caching:
    ...     image = pipeline(prompt).images[0]
    >>> caching.account.work

    The prompt's tokens are always computed. Rows of a batch, guidance branches included, choose tokens by themselves.

    Args:
        pipeline: changed in place until :meth:`Caching.restore`.
        ratio: see :class:`CacheSettings`.
        copied: likewise.
        speculative: likewise.

    Raises:
        CachingError: the pipeline's network or scheduler does not fit, or its attention is not diffusers' own. A
            pipeline that asks its network twice a step is refused by the call.
        ValueError: a setting is out of its range.
    """
    return Caching(pipeline, CacheSettings(ratio, copied, speculative))


def _check(network: Any, family: CachedFamily) -> None:
    """Let the cache in and out once, so that a network that does not fit is refused at once."""
    with ExitStack() as stack:
        family.install(network, lambda: CachedChain(CacheSettings(speculative=0), None).tokens, stack)


def _served(network: Any, family: CachedFamily, pipeline: Any, chain: CachedChain) -> Any:
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
