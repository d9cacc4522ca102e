"""Which samplers are compared on which episodes of a task, said so that any process can run its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from specpolicy.policies.checkpoint import CheckpointError, load_policy

from .episodes import EpisodeKey, episode_keys
from .player import MakeEnv
from .pool import EnvPool
from .protocols import Policy, Sampler
from .provenance import checkpoint_digest
from .workplace import Workplace


class Contestants(NamedTuple):
    """A policy, and the samplers that are compared on it, by name."""

    policy: Policy
    samplers: Mapping[str, Sampler]


@dataclass(frozen=True)
class TrainedPolicy:
    """Loads a checkpoint and makes samplers for it.

    Attributes:
        checkpoint: folder of the policy.
        task: name of the task that it must have been trained on.
        recipes: for each sampler what makes it for the policy.
        device: where the policy computes.
        digest: what :func:`checkpoint_digest` must say of the folder, wherever it is opened; None for anything.
    """

    checkpoint: str
    task: str
    recipes: Mapping[str, Callable[[Any], Sampler]]
    device: str = "cpu"
    digest: str | None = None

    def __call__(self) -> Contestants:
        """Load it.

        Raises:
            CheckpointError: it is missing, damaged, of another task, or not the one that the digest is of.
        """
        policy = load_policy(Path(self.checkpoint), self.device, self.task)
        if self.digest is not None and checkpoint_digest(self.checkpoint) != self.digest:
            raise CheckpointError(
                f"{self.checkpoint} is not the checkpoint that this run began with; every machine must see the same "
                "files there, and nobody may change them meanwhile"
            )
        return Contestants(policy, {name: make(policy) for name, make in self.recipes.items()})

    def pinned(self) -> TrainedPolicy:
        """The same, but only for the checkpoint as it is now, which has shown that it loads. Raises as a call does."""
        self()
        return replace(self, digest=checkpoint_digest(self.checkpoint))


@dataclass(frozen=True)
class Comparison:
    """Samplers of one policy on the seeds of one task. It can be pickled, and opened in another process.

    Attributes:
        task: its name.
        contestants: gives the policy and the samplers of ``repeats``.
        make_env: makes an environment.
        seeds: of the initial states.
        repeats: episodes for each seed, by sampler.
        checkpoint: where the policy came from, for the record.
        recipes: configuration of each sampler, for the record; a results folder refuses a sampler whose recipe has
            changed.
        num_envs: environments that share a network pass.
        threads: torch's threads while episodes run; None leaves them as they are. The last bits of a network's output
            depend on them, as they do on ``num_envs``.
        block_size: seeds in a unit of work.
        retry_crashed: run crashed episodes of an earlier run again.
        crash_limit: give up after so many crashes in a row; None: never.
        latency_calls: timed calls of each sampler at batch 1; 0 for none.
        latency_threads: torch's threads meanwhile; None leaves them as they are.
        control_hz: control rate of the environment, for the video's clock.
        video: samplers to film side by side, as far as they take part.
    """

    task: str
    contestants: Callable[[], Contestants]
    make_env: MakeEnv
    seeds: Sequence[int]
    repeats: Mapping[str, int]
    checkpoint: str
    recipes: Mapping[str, Any] = field(default_factory=dict)
    num_envs: int = 8
    threads: int | None = None
    block_size: int = 100
    retry_crashed: bool = False
    crash_limit: int | None = 20
    latency_calls: int = 40
    latency_threads: int | None = None
    control_hz: float = 20.0
    video: tuple[str, ...] = ()

    def open(self) -> Workplace:
        """Load the policy and start the environments, here."""
        policy, samplers = self.contestants()
        pool = EnvPool(self.make_env, policy.config.observation_horizon, self.num_envs)
        return Workplace(policy, samplers, pool, self.crash_limit, self.threads)

    def episodes(self) -> set[EpisodeKey]:
        """Which episodes are compared."""
        return {key for name, count in self.repeats.items() for key in episode_keys(name, self.seeds, count)}
