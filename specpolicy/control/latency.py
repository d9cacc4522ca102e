"""How long an inference takes: measured on the spot, or drawn from a distribution, repeatably."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Latency(Protocol):
    """The duration of inferences."""

    def seconds(self, random: np.random.Generator, measured: float | None, share: float) -> float:
        """Draw the duration of one inference.

        Args:
            random: the episode's own stream.
            measured: how long the inference took here, seconds; None if it shared a batch with others.
            share: what it takes of a whole inference, in network evaluations (NFE).
        """
        ...

    @property
    def typical_s(self) -> float | None:
        """The median duration of a whole inference; None where only measuring tells."""
        ...


@dataclass(frozen=True)
class Constant:
    """Every whole inference takes ``duration_s`` seconds."""

    duration_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.duration_s < float("inf"):
            raise ValueError(f"a latency of {self.duration_s} s; expected 0 or more seconds")

    def seconds(self, random: np.random.Generator, measured: float | None, share: float) -> float:
        """See :class:`Latency`."""
        return self.duration_s * share

    @property
    def typical_s(self) -> float:
        """Itself."""
        return self.duration_s


@dataclass(frozen=True)
class Empirical:
    """Durations drawn independently, each as likely as the other, from a list of ``durations_s`` (seconds)."""

    durations_s: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self.durations_s) or not all(0 <= each < float("inf") for each in self.durations_s):
            raise ValueError("an empirical latency takes at least one duration, each of 0 or more seconds")

    def seconds(self, random: np.random.Generator, measured: float | None, share: float) -> float:
        """See :class:`Latency`."""
        return float(self.durations_s[int(random.integers(len(self.durations_s)))]) * share

    @property
    def typical_s(self) -> float:
        """The median."""
        return float(np.median(self.durations_s))


@dataclass(frozen=True)
class LogNormal:
    """Durations whose logarithm is normal.

    Attributes:
        median_s: seconds, positive.
        sigma: standard deviation of the logarithm; 0.3 puts one in twenty beyond 1.6 times the median.
    """

    median_s: float
    sigma: float

    def __post_init__(self) -> None:
        if not (0 < self.median_s < float("inf") and 0 <= self.sigma < float("inf")):
            raise ValueError(f"a log-normal latency takes median > 0 and sigma >= 0, got {self.median_s}, {self.sigma}")

    def seconds(self, random: np.random.Generator, measured: float | None, share: float) -> float:
        """See :class:`Latency`."""
        return float(self.median_s * np.exp(self.sigma * random.standard_normal())) * share

    @property
    def typical_s(self) -> float:
        """The median."""
        return self.median_s


@dataclass(frozen=True)
class Measured:
    """As long as it took here; not repeatable."""

    def seconds(self, random: np.random.Generator, measured: float | None, share: float) -> float:
        """See :class:`Latency`. Raises ``ValueError`` if the computation was not timed by itself."""
        if measured is None:
            raise ValueError(
                "a computation that shares its passes with other loops has no latency of its own: run one loop at a "
                "time (num_envs=1), or inject a recorded latency"
            )
        return measured

    @property
    def typical_s(self) -> None:
        """Unknown beforehand."""
        return None
