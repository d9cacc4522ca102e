"""One episode: what identifies it, and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class EpisodeKey(NamedTuple):
    """Which episode: ``seed`` fixes the initial state, ``(seed, repeat)`` the policy's random numbers."""

    sampler: str
    seed: int
    repeat: int


def episode_keys(sampler: str, seeds: Sequence[int], repeats: int = 1) -> list[EpisodeKey]:
    """Every seed with each of its repeats, seed by seed.

    Raises:
        ValueError: no seeds, a seed twice or negative, or fewer than one repeat.
    """
    if len(set(seeds)) != len(seeds) or not seeds or min(seeds) < 0:
        raise ValueError("seeds must be non-negative, each given once, and at least one of them")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    return [EpisodeKey(sampler, seed, repeat) for seed in seeds for repeat in range(repeats)]


@dataclass(frozen=True)
class EpisodeRecord:
    """The outcome of one episode. A crashed one is a failure like any other, with its reason beside it.

    Attributes:
        task: name of the task.
        sampler: name of the sampler.
        seed: seed of the environment's reset.
        repeat: number of the repeat from this initial state.
        success: ``info["success"]`` was true at some step.
        steps: environment steps played.
        return_: sum of rewards.
        passes: sequential network passes of each action chunk.
        evaluations: network evaluations of the whole episode, batched ones counted one by one.
        duration_s: wall time from reset to end, shared with the episodes that ran beside it: not a latency.
        error: why the episode crashed; ``None`` if it did not.
    """

    task: str
    sampler: str
    seed: int
    repeat: int
    success: bool
    steps: int
    return_: float
    passes: tuple[int, ...]
    evaluations: int
    duration_s: float
    error: str | None = None

    @property
    def key(self) -> EpisodeKey:
        """What identifies this episode in a results folder."""
        return EpisodeKey(self.sampler, self.seed, self.repeat)

    @property
    def crashed(self) -> bool:
        """Whether the environment or the policy raised an exception."""
        return self.error is not None

    @property
    def chunks(self) -> int:
        """Action chunks the policy was asked for."""
        return len(self.passes)

    @property
    def mean_passes(self) -> float:
        """Sequential network passes a chunk; NaN if there was no chunk."""
        return sum(self.passes) / len(self.passes) if self.passes else float("nan")
