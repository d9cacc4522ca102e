"""The policy as the server sees it: several sessions' observations in, an answer for each out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.policies import DiffusionPolicy, ObservationSpec
from specpolicy.policies.diffusion_policy import Sampler

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one session asks for.

    Attributes:
        observation: arrays of shape ``(horizon, dim)``, checked.
        stream: the session's random stream, as :meth:`Engine.stream` made it; sampling moves it on.
    """

    observation: Mapping[str, NDArray[np.float32]]
    stream: Any


@dataclass(frozen=True)
class Answer:
    """What it gets.

    Attributes:
        actions: shape ``(executed_actions, action_dim)``.
        passes: network passes, one after another.
        acceptance: share of drafted steps accepted; None where nothing was drafted.
    """

    actions: NDArray[np.float32]
    passes: int
    acceptance: float | None


class Engine(Protocol):
    """Samples for several sessions at once. Called from one thread at a time, which is not the event loop's."""

    @property
    def observations(self) -> ObservationSpec:
        """What the policy looks at."""
        ...

    def describe(self) -> dict[str, Any]:
        """The policy, for the metadata that every client gets: numbers, text, lists and dicts."""
        ...

    def stream(self, seed: int) -> Any:
        """A random stream; a session's answers depend on it and on its observations alone."""
        ...

    def run(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """Answers in the order of ``jobs``; what is wrong with one job is that job's answer and no other's."""
        ...


class PolicyEngine:
    """A diffusion policy and a sampler.

    Each session draws from its own generator, so that its actions do not depend on who shares its batch (up to the
    rounding of the network's batched arithmetic). Generators live on the CPU: the same seed gives the same noise on
    every device.
    """

    def __init__(self, policy: DiffusionPolicy, sampler: Sampler) -> None:
        self.policy, self.sampler = policy, sampler

    @property
    def observations(self) -> ObservationSpec:
        """What the policy looks at."""
        return self.policy.observations

    def describe(self) -> dict[str, Any]:
        """Task, shapes, and whether the sampler has the law of its chain."""
        config = self.policy.config
        return {
            "task": config.task,
            "observations": dict(config.observations),
            "observation_horizon": config.observation_horizon,
            "action_dim": config.action_dim,
            "action_horizon": config.action_horizon,
            "executed_actions": config.executed_actions,
            "sampler": repr(self.sampler),
            "exact": bool(getattr(self.sampler, "exact", False)),
        }

    def stream(self, seed: int) -> torch.Generator:
        """A generator on the CPU."""
        return torch.Generator().manual_seed(seed)

    def run(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """One batch; if it fails, each job alone from where its stream was, to find out whose fault it is."""
        before = [job.stream.get_state() for job in jobs]
        try:
            return list(self._act(jobs))
        except Exception as error:
            for job, state in zip(jobs, before, strict=True):
                job.stream.set_state(state)
            if len(jobs) == 1:
                return [error]
            _log.warning("a batch of %d failed (%s); trying one by one", len(jobs), error)
            return [self.run([job])[0] for job in jobs]

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Sample for zeros a few times: first calls are slow, and no robot should wait for them."""
        zeros = {
            name: np.zeros((self.observations.horizon, dim), np.float32) for name, dim in self.observations.keys.items()
        }
        for size in batch_sizes:
            self._act([Job(zeros, self.stream(0)) for _ in range(size)])

    def _act(self, jobs: Sequence[Job]) -> list[Answer]:
        observation = {name: np.stack([job.observation[name] for job in jobs]) for name in self.observations.keys}
        chunk = self.policy.act(observation, self.sampler, [job.stream for job in jobs])
        result = chunk.result
        return [
            Answer(actions, int(passes), _share(result.proposed, result.accepted, row))
            for row, (actions, passes) in enumerate(zip(chunk.actions, result.passes, strict=True))
        ]


def _share(proposed: torch.Tensor | None, accepted: torch.Tensor | None, row: int) -> float | None:
    if proposed is None or accepted is None:
        return None
    drafted = int(proposed[:, row].clamp(min=0).sum())
    return float(accepted[:, row].clamp(min=0).sum()) / drafted if drafted else None
