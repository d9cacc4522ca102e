"""What is still to be run, cut into units of work that depend on nothing but themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from specpolicy.policies.protocols import Observation

EVALUATION_SEEDS = 100_000
"""First seed of an evaluation that only says how many it wants; demonstrations are recorded from 0 upwards."""


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
class EpisodeResult:
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


@dataclass(frozen=True)
class Unit:
    """Episodes of one sampler on one task, run together in one place.

    Attributes:
        task: name of the task.
        sampler: name of the sampler.
        keys: the episodes, at least one.
    """

    task: str
    sampler: str
    keys: tuple[EpisodeKey, ...]

    def __str__(self) -> str:
        seeds = sorted({key.seed for key in self.keys})
        return f"{self.task}, {self.sampler}, {len(self.keys)} episodes of seeds {seeds[0]} to {seeds[-1]}"


@dataclass(frozen=True)
class Batch:
    """Episodes that have ended.

    Attributes:
        task: name of their task.
        records: the episodes.
        observations: some of those that the policy was asked about, arrays of shape ``(1, n_obs_steps, dim)``.
    """

    task: str
    records: tuple[EpisodeResult, ...]
    observations: Sequence[Observation] = field(default_factory=tuple)


def plan_units(
    task: str,
    repeats: Mapping[str, int],
    seeds: Sequence[int],
    done: AbstractSet[EpisodeKey] = frozenset(),
    block_size: int = 100,
) -> Iterator[Unit]:
    """Every episode that is not ``done``, in blocks of seeds, each with every sampler before the next.

    So a run that is cut short still compares samplers on the same seeds.

    Args:
        task: name of the task.
        repeats: episodes for each seed, by sampler.
        seeds: of the initial states.
        done: episodes to leave out.
        block_size: seeds in a block; at least several times the number of environments, or slots idle.

    Raises:
        ValueError: no seeds, one twice or negative; fewer than one repeat or one seed in a block.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    for sampler, count in repeats.items():
        episode_keys(sampler, seeds, count)  # all seeds at once: a seed may be twice, but in different blocks
    for first in range(0, len(seeds), block_size):
        for sampler, count in repeats.items():
            keys = episode_keys(sampler, seeds[first : first + block_size], count)
            missing = tuple(key for key in keys if key not in done)
            if missing:
                yield Unit(task, sampler, missing)
