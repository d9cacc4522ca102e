"""Which seeds are done and which is next: the result is the same in whatever order attempts end."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count


class Seeds:
    """Looks for the first successful seeds and tries none in vain.

    Args:
        first: the first seed.
        wanted: how many successes.
        done: seeds that were tried before: None after a success, else why it failed.
    """

    def __init__(self, first: int, wanted: int, done: Mapping[int, str | None]) -> None:
        self._first, self._wanted = first, wanted
        self._done = {seed: failure for seed, failure in sorted(done.items()) if seed >= first}

    def note(self, seed: int, failure: str | None) -> None:
        """Take in an attempt."""
        self._done[seed] = failure

    def next(self, under_way: frozenset[int]) -> int | None:
        """The first untried seed; None while those before it may turn out to be enough."""
        seed = next(seed for seed in count(self._first) if seed not in self._done and seed not in under_way)
        promising = sum(self._done.get(earlier) is None for earlier in range(self._first, seed))
        return seed if promising < self._wanted else None

    def successes(self) -> list[int]:
        """The first successful seeds, at most as many as are wanted."""
        return sorted(seed for seed, failure in self._done.items() if failure is None)[: self._wanted]

    def failures(self) -> dict[int, str]:
        """Failed seeds and why; beyond the last wanted success none counts."""
        successes = self.successes()
        until = successes[-1] if len(successes) == self._wanted else float("inf")
        return {seed: why for seed, why in sorted(self._done.items()) if why is not None and seed < until}

    def failed_in_a_row(self) -> dict[int, str]:
        """The failures since the last success."""
        last = max(self.successes(), default=-1)
        return {seed: why for seed, why in self.failures().items() if seed > last}
