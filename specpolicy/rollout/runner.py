"""Episodes side by side, one network pass for all: receding horizon in lockstep of action chunks.

Round after round, every slot plays its chunk; ended episodes are handed out and their slots take the next seed at
once; then all slots ask the policy together. Each episode draws from its own generator, so what it samples does not
depend on its neighbours. (The last bits of a network's output may still depend on the batch size, and a simulator can
amplify them: rerun with the same number of environments to repeat an evaluation to the bit.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.control.inference import episode_generator
from specpolicy.policies.protocols import ChunkPolicy, ChunkPolicyConfig, ChunkSampler, Observation, PredictedChunk
from specpolicy.rollout.env_worker import EnvPool, EnvWorker, PlayChunk, Start
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult
from specpolicy.rollout.workers import WorkerError
from specpolicy.utils.errors import format_exception


class ObservationRecorder:
    """Wraps a policy and keeps observations that pass, at even distances: late phases of episodes, too.

    Args:
        policy: whom to ask.
        limit: keep no more than this many; all of them if None. Between half the limit and the limit are kept of more.

    Attributes:
        observations: arrays of shape ``(1, n_obs_steps, dim)``, in the order of asking.
    """

    def __init__(self, policy: ChunkPolicy, limit: int | None = None) -> None:
        self._policy, self._limit = policy, limit
        self._seen, self._distance = 0, 1
        self.observations: list[dict[str, NDArray[Any]]] = []

    @property
    def config(self) -> ChunkPolicyConfig:
        """The wrapped policy's."""
        return self._policy.config

    def predict_action(
        self, observation: Observation, sampler: Any, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> PredictedChunk:
        """Keep the observation, then ask the wrapped policy."""
        batch = len(next(iter(observation.values())))
        for row in range(batch):
            if self._seen % self._distance == 0:
                self.observations.append({name: np.array(part[row : row + 1]) for name, part in observation.items()})
            self._seen += 1
            if self._limit is not None and len(self.observations) > self._limit:
                self.observations = self.observations[::2]
                self._distance *= 2
        return self._policy.predict_action(observation, sampler, generator)


class EvaluationAborted(RuntimeError):
    """Episodes crash one after another: the set-up is broken, not an episode."""


@dataclass
class _Running:
    """An episode under way in a slot."""

    key: EpisodeKey
    slot: EnvWorker
    generator: torch.Generator
    began: float
    window: dict[str, NDArray[np.floating]] = field(default_factory=dict)
    reward: float = 0.0
    steps: int = 0
    success: bool = False
    passes: list[int] = field(default_factory=list)
    evaluations: int = 0


def rollout(
    policy: ChunkPolicy,
    sampler: ChunkSampler,
    pool: EnvPool,
    episodes: Iterable[EpisodeKey],
    *,
    task: str,
    crash_limit: int | None = 20,
) -> Iterator[EpisodeResult]:
    """Run episodes and hand out each record as soon as its episode has ended.

    Every episode yields exactly one record. An exception of its environment or of the policy is recorded as a crash
    and the others go on; if the policy fails on a batch, each of its entries is tried alone with its random stream
    wound back, so that only the culprit is charged.

    Args:
        policy: whom to ask for action chunks.
        sampler: handed to the policy.
        pool: where episodes run.
        episodes: which ones, in order.
        task: name kept in the records.
        crash_limit: give up after so many crashes with no finished episode between them; ``None``: never.

    Raises:
        EvaluationAborted: ``crash_limit`` was reached. Records handed out before remain valid.
    """
    queue, free = deque(episodes), deque(pool.slots)
    running: list[_Running] = []
    guard = _CrashGuard(crash_limit)
    try:
        while queue or running:
            asking: list[_Running] = []
            pending = deque(running)
            while pending or (queue and free):
                while queue and free:
                    pending.append(_start(queue.popleft(), free.popleft()))
                    running.append(pending[-1])
                episode = pending.popleft()
                record = _receive(episode, task)
                if record is None:
                    asking.append(episode)
                else:
                    guard.ended.append(record)
                    running.remove(episode)
                    free.append(episode.slot)
            yield from guard.hand_out()
            for episode, answer in _ask(policy, sampler, asking):
                if isinstance(answer, WorkerError):
                    guard.ended.append(_record(episode, task, answer.error))
                    running.remove(episode)
                    free.append(episode.slot)
                else:
                    episode.slot.send(PlayChunk(answer))
            yield from guard.hand_out()
    finally:
        for episode in running:  # interrupted: their slots are in the middle of something
            episode.slot.close()


class _CrashGuard:
    """Hands out ended episodes and stops when nothing but crashes comes."""

    def __init__(self, limit: int | None) -> None:
        self.ended: list[EpisodeResult] = []
        self._limit, self._in_a_row = limit, 0

    def hand_out(self) -> Iterator[EpisodeResult]:
        while self.ended:
            record = self.ended.pop(0)
            self._in_a_row = self._in_a_row + 1 if record.crashed else 0
            yield record
            if self._limit is not None and self._in_a_row >= self._limit:
                raise EvaluationAborted(
                    f"{self._in_a_row} episodes crashed in a row, the last one ({record.sampler}, seed {record.seed}) "
                    f"with: {record.error}. Mend the cause, then run the crashed episodes again."
                )


def _start(key: EpisodeKey, slot: EnvWorker) -> _Running:
    episode = _Running(key, slot, episode_generator(key.seed, key.repeat), time.perf_counter())
    slot.send(Start(key.seed))
    return episode


def _receive(episode: _Running, task: str) -> EpisodeResult | None:
    """Take in what the slot answers; the record if the episode is over."""
    segment = episode.slot.receive()
    if isinstance(segment, WorkerError):
        return _record(episode, task, segment.error)
    episode.window = segment.window
    episode.reward += segment.reward
    episode.steps += segment.steps
    episode.success |= segment.success
    return _record(episode, task, None) if segment.ended else None


def _record(episode: _Running, task: str, error: str | None) -> EpisodeResult:
    return EpisodeResult(
        task=task,
        sampler=episode.key.sampler,
        seed=episode.key.seed,
        repeat=episode.key.repeat,
        success=episode.success and error is None,
        steps=episode.steps,
        return_=episode.reward,
        passes=tuple(episode.passes),
        evaluations=episode.evaluations,
        duration_s=time.perf_counter() - episode.began,
        error=error,
    )


def _ask(
    policy: ChunkPolicy, sampler: ChunkSampler, episodes: list[_Running]
) -> list[tuple[_Running, NDArray[np.floating] | WorkerError]]:
    """A chunk ``(steps, action_dim)`` for each episode, or why there is none."""
    if not episodes:
        return []
    states = [episode.generator.get_state() for episode in episodes]
    try:
        return list(zip(episodes, _act(policy, sampler, episodes), strict=True))
    except Exception as error:
        if len(episodes) == 1:
            return [(episodes[0], WorkerError(f"policy: {format_exception(error)}"))]
    for episode, state in zip(episodes, states, strict=True):
        episode.generator.set_state(state)
    return [answer for episode in episodes for answer in _ask(policy, sampler, [episode])]


def _act(policy: ChunkPolicy, sampler: ChunkSampler, episodes: list[_Running]) -> list[NDArray[np.floating]]:
    observation = {name: np.stack([episode.window[name] for episode in episodes]) for name in episodes[0].window}
    chunk = policy.predict_action(observation, sampler, [episode.generator for episode in episodes])
    if chunk.actions.ndim != 3 or len(chunk.actions) != len(episodes) or chunk.actions.shape[1] < 1:
        raise ValueError(
            f"actions of shape {chunk.actions.shape}; expected (batch={len(episodes)}, steps >= 1, action_dim)"
        )
    if not np.all(np.isfinite(chunk.actions)):
        raise ValueError("the policy gave NaN or infinite actions")
    account = zip(episodes, chunk.result.passes.tolist(), chunk.result.evaluations.tolist(), strict=True)
    for episode, passes, evaluations in list(account):  # as a list first: a mismatch must not leave half of it counted
        episode.passes.append(int(passes))
        episode.evaluations += int(evaluations)
    return list(chunk.actions)
