"""One chain, its network passes served through a token cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from .settings import CacheSettings, CachingError
from .speculation import Course, looks
from .token_cache import TokenCache

Ask: TypeAlias = Callable[[Tensor, float], Tensor]
"""Asks the network at a state and a scheduler's time; the answer has the shape of the state."""


class CachedChain:
    """Passes of one batch of chains that stand at the same times; the network's layers answer to :attr:`tokens`.

    The first pass computes all tokens; its answer is what the speculative steps follow. Later ones compute as many as
    the settings say.

    Args:
        settings: how much to compute. course: how to look ahead; may be None without speculative steps.

    Attributes:
        tokens: the cache of the chain that goes on.
        passes: network passes so far, speculative ones included.
        work: the same in whole passes: a pass that computes half of the tokens counts as half.
    """

    def __init__(self, settings: CacheSettings, course: Course | None) -> None:
        self.settings, self.course = settings, course
        self.tokens = TokenCache(settings)
        self.passes, self.work = 0, 0.0
        self._seen: list[tuple[float, Float[Tensor, "b tokens"]]] = []
        self._last: float | None = None
        self._shape: tuple[int, ...] | None = None

    def step(self, ask: Ask, x: Float[Tensor, "b ..."], times: Sequence[float]) -> Float[Tensor, "b ..."]:
        """One pass at ``x``.

        Args:
            ask: asks the network. x: the state. times: the scheduler's times from now on, the present one first.

        Raises:
            CachingError: the time has not fallen since the last pass: another pass at the same time would find a cache
                that is not its own.
        """
        now = times[0]
        if self._shape != tuple(x.shape):  # guidance was switched on or off: what is cached has other rows
            self.tokens, self._seen, self._last = TokenCache(self.settings), [], None
            self._shape = tuple(x.shape)
        if self._last is not None and not now < self._last:
            raise CachingError(
                f"a pass at time {now:g} after one at {self._last:g}: caching wants one pass a step, at falling times. "
                "Pipelines that ask their network twice a step, and solvers that go back, cannot be cached"
            )
        first, self._last = self._last is None, now
        output = self._pass(ask, x, now)
        if first:
            for time in looks(times, self.settings.speculative):
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
