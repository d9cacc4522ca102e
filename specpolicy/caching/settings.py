"""How much of a network to compute, and how to choose it."""

from __future__ import annotations

from dataclasses import dataclass


class CachingError(ValueError):
    """A network, a pipeline or the order of its passes does not fit token caching; the message says why."""


@dataclass(frozen=True)
class CacheSettings:
    """Settings of token caching. Nothing but ``ratio=0`` leaves samples as they are.

    Attributes:
        ratio: share of the tokens that a pass takes from the cache, 0 to 1; at least one token is always computed.
        copied: share of the importance, 0 to 1, that the least important tokens hold together whose features are
            copied; other cached ones are extrapolated. 0 extrapolates all of them, 1 copies them all. Published: 0.1.
        speculative: passes spent ahead of the chain to see which tokens will be looked at later. 0 goes without.
            Published: 2.

    Raises:
        ValueError: a setting is out of its range.
    """

    ratio: float = 0.5
    copied: float = 0.1
    speculative: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}; the share of cached tokens is 0 or more and below 1")
        if not 0 <= self.copied <= 1:
            raise ValueError(f"copied={self.copied}; a share of the importance is 0 to 1")
        if self.speculative < 0:
            raise ValueError(f"speculative={self.speculative}; passes ahead of the chain are 0 or more")

    def computed(self, tokens: int) -> int:
        """How many of so many tokens a pass computes."""
        return max(1, tokens - int(self.ratio * tokens + 1e-9))
