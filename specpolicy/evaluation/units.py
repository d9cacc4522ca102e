"""What is still to be run, cut into units of work that depend on nothing but themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from .episodes import EpisodeKey, EpisodeRecord, episode_keys
from .protocols import Observation


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
        observations: some of those that the policy was asked about, arrays of shape ``(1, observation_horizon, dim)``.
    """

    task: str
    records: tuple[EpisodeRecord, ...]
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
