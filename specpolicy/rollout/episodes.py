"""Episodes to run and their results; units of work for those who run many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from specpolicy.control.executors import Executor
from specpolicy.control.inference import checked_seed
from specpolicy.control.latency import Constant, Latency
from specpolicy.control.trace import EpisodeTrace
from specpolicy.policies.protocols import Observation

EVALUATION_SEEDS = 100_000
"""First seed of an evaluation that only says how many it wants; demonstrations are recorded from 0 upwards."""


class EpisodeKey(NamedTuple):
    """Which episode: ``seed`` fixes the initial state, ``(seed, repeat)`` the policy's random numbers.

    Attributes:
        sampler: name of the sampler; of a controller (executor × sampler × latency) its whole name.
        seed: of the environment's reset.
        repeat: number of the repeat from this initial state.
    """

    sampler: str
    seed: int
    repeat: int


def episode_keys(sampler: str, seeds: Sequence[int], repeats: int = 1) -> list[EpisodeKey]:
    """List every seed with each of its repeats, seed by seed.

    Args:
        sampler: name of the sampler or controller.
        seeds: non-negative integers (numpy's included), each once, at least one.
        repeats: episodes for each seed, at least 1.

    Returns:
        ``len(seeds) * repeats`` keys.

    Raises:
        ValueError: no seeds, a seed twice or negative, or fewer than one repeat.
        TypeError: a seed that is no integer.
    """
    numbers = [checked_seed(seed) for seed in seeds]
    if len(set(numbers)) != len(numbers) or not numbers:
        raise ValueError("seeds must be non-negative, each given once, and at least one of them")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    return [EpisodeKey(sampler, seed, repeat) for seed in numbers for repeat in range(repeats)]


@dataclass(frozen=True)
class EpisodeSpec:
    """An episode to be played.

    Attributes:
        key: which.
        sampler: name of the sampler that the policy is asked with.
        executor: what happens while the policy computes.
        latency: of an inference on the simulated clock; nothing but the trace's times depends on it in lockstep.
    """

    key: EpisodeKey
    sampler: str
    executor: Executor
    latency: Latency = field(default_factory=lambda: Constant(0.0))


@dataclass(frozen=True)
class EpisodeResult:
    """The outcome of one episode. A crashed one is a failure like any other, with its reason beside it.

    Attributes:
        task: name of the task.
        sampler: name of the sampler or controller.
        seed: seed of the environment's reset.
        repeat: number of the repeat from this initial state.
        success: ``info["success"]`` was true at some step.
        steps: environment steps played.
        return_: sum of rewards.
        passes: sequential network evaluations (NFE) of each action chunk that was played.
        evaluations: rows that the network computed in the whole episode.
        duration_s: wall time from reset to end, shared with the episodes that ran beside it: not a latency.
        error: why the episode crashed; ``None`` if it did not.
        trace: what happened tick by tick; not kept in results folders, and None where it was not asked for.
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
    trace: EpisodeTrace | None = field(default=None, compare=False, repr=False)

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
        """Action chunks that were played."""
        return len(self.passes)

    @property
    def mean_passes(self) -> float:
        """Mean network evaluations (NFE) of a chunk; NaN if there was no chunk."""
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
    """Plan every episode that is not ``done``, in blocks of seeds, each with every sampler before the next.

    A run that is cut short thus still compares samplers on the same seeds.

    Args:
        task: name of the task.
        repeats: episodes for each seed, by sampler.
        seeds: of the initial states.
        done: episodes to leave out.
        block_size: seeds in a block; at least several times the number of environments, or workers idle.

    Yields:
        Units of work.

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
