"""The one way to play episodes: side by side in workers, with batches of inference shared by all.

Round after round every worker plays until it needs an inference; ended episodes are handed out and their workers take
the next one at once; then all requests for one sampler are answered by one :func:`infer_batch`. Each episode draws from
its own generator, so what it samples does not depend on its neighbours. (The last bits of a network's output may still
depend on the batch size, and a simulator can amplify them: rerun with the same number of environments to repeat an
evaluation to the bit.)
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.control.clocks import Clock
from specpolicy.control.inference import (
    EpisodeState,
    InferenceKind,
    InferenceRequest,
    InferenceResult,
    PolicyRunner,
    infer_batch,
)
from specpolicy.control.latency import Latency
from specpolicy.control.loop import ControlSetup, run_episode
from specpolicy.control.trace import EpisodeTrace
from specpolicy.policies.protocols import ChunkPolicy, ChunkPolicyConfig, Observation, PredictedChunk
from specpolicy.rollout.env_worker import (
    EnvPool,
    EnvWorker,
    EpisodeCrash,
    MakeViews,
    ResetRequest,
    WorkerConfig,
    close_environment,
)
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult, EpisodeSpec
from specpolicy.rollout.workers import WorkerError
from specpolicy.utils.errors import format_exception

MakeClock = Callable[[float, Latency], Clock]
"""``(rate_hz, latency)`` → a clock; a real one has no use for the latency."""


class EvaluationAborted(RuntimeError):
    """Episodes crash one after another: the set-up is broken, not an episode."""


def run_episodes(
    policy: ChunkPolicy,
    samplers: Mapping[str, Any],
    pool: EnvPool,
    episodes: Iterable[EpisodeSpec],
    *,
    task: str,
    crash_limit: int | None = 20,
) -> Iterator[EpisodeResult]:
    """Play episodes and hand out each result as soon as its episode has ended.

    Every episode yields exactly one result. An exception of its environment or, without guards, of the policy is
    recorded as a crash and the others go on; if a batch fails, each of its entries is tried alone with its random
    stream rewound, so that only the culprit crashes.

    Args:
        policy: predicts action chunks.
        samplers: by the names that episodes use.
        pool: where episodes run.
        episodes: which ones, in order.
        task: name kept in the results.
        crash_limit: give up after so many crashes with no finished episode between them; ``None``: never.

    Yields:
        Results in the order in which episodes end, each with its trace.

    Raises:
        EvaluationAborted: ``crash_limit`` was reached. Results handed out before remain valid.
    """
    queue, free = deque(episodes), deque(pool.workers)
    running: list[_Running] = []
    guard = _CrashGuard(crash_limit)
    try:
        while queue or running:
            requests: dict[str, list[tuple[_Running, InferenceRequest]]] = defaultdict(list)
            pending = deque(running)
            while pending or (queue and free):
                while queue and free:
                    pending.append(_start(queue.popleft(), free.popleft()))
                    running.append(pending[-1])
                episode = pending.popleft()
                reply = episode.worker.receive()
                if isinstance(reply, InferenceRequest):
                    requests[episode.spec.sampler].append((episode, reply))
                else:
                    running.remove(episode)
                    free.append(episode.worker)
                    yield from guard.note(episode.result(task, reply))
            for name, group in requests.items():
                asked = [(episode.state, request) for episode, request in group]
                for (episode, request), result in zip(group, infer_batch(policy, samplers[name], asked), strict=True):
                    episode.note(request, result)
                    episode.worker.send(result)
    finally:
        for episode in running:  # interrupted: their workers are in the middle of something
            episode.worker.close()


def run_episodes_singly(
    policy: ChunkPolicy,
    samplers: Mapping[str, Any],
    config: WorkerConfig,
    episodes: Iterable[EpisodeSpec],
    make_clock: MakeClock,
    *,
    task: str,
    crash_limit: int | None = 20,
    make_views: MakeViews | None = None,
) -> Iterator[EpisodeResult]:
    """Play episodes one at a time in this process: for real time, measured latency and viewers.

    Args:
        policy: predicts action chunks.
        samplers: by the names that episodes use.
        config: of the episodes.
        episodes: which ones, in order.
        make_clock: makes the clock of each episode.
        task: name kept in the results.
        crash_limit: see :func:`run_episodes`.
        make_views: makes what watches an episode here, beside the configuration's own.

    Yields:
        Results, each with its trace.

    Raises:
        EvaluationAborted: see :func:`run_episodes`.
    """
    env: gymnasium.Env[Any, Any] | None = None
    guard = _CrashGuard(crash_limit)
    try:
        for spec in episodes:
            begun, reply = time.perf_counter(), None
            try:
                env = env if env is not None else config.make_env()
                setup = ControlSetup(
                    env,
                    spec.executor,
                    make_clock(config.rate_hz, spec.latency),
                    config.n_obs_steps,
                    config.action_spec,
                    config.guards,
                    [view for make in (config.make_views, make_views) if make is not None for view in make(spec.key)],
                    config.max_ticks,
                    success_required=config.guards is None,
                    limits=config.limits,
                    max_delay=config.max_delay,
                )
                runner = PolicyRunner(policy, samplers[spec.sampler])
                reply = run_episode(setup, runner, spec.key.seed, spec.key.repeat)
                result = _result(task, spec.key, reply, time.perf_counter() - begun)
            except Exception as error:
                if env is not None:
                    close_environment(env)  # its state is unknown
                env = None
                crash = EpisodeCrash(format_exception(error), None)
                result = _result(task, spec.key, crash, time.perf_counter() - begun)
            yield from guard.note(result)
    finally:
        if env is not None:
            close_environment(env)


class ObservationRecorder:
    """Wraps a policy and keeps observations that it is asked about, at even distances over whole episodes.

    Args:
        policy: that is asked.
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


@dataclass
class _Running:
    """An episode under way in a worker."""

    spec: EpisodeSpec
    worker: EnvWorker
    state: EpisodeState
    begun: float
    passes: list[int] = field(default_factory=list)
    evaluations: int = 0

    def note(self, request: InferenceRequest, result: InferenceResult) -> None:
        """What has been spent is known here, also if the worker dies."""
        self.evaluations += result.evaluations or 0
        if request.kind is not InferenceKind.DRAFT and result.passes is not None:
            self.passes.append(result.passes)

    def result(self, task: str, reply: EpisodeTrace | EpisodeCrash | WorkerError) -> EpisodeResult:
        return _result(task, self.spec.key, reply, time.perf_counter() - self.begun, self.passes, self.evaluations)


class _CrashGuard:
    """Hands on results and stops when nothing but crashes comes."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._in_a_row = limit, 0

    def note(self, result: EpisodeResult) -> Iterator[EpisodeResult]:
        self._in_a_row = self._in_a_row + 1 if result.crashed else 0
        yield result
        if self._limit is not None and self._in_a_row >= self._limit:
            raise EvaluationAborted(
                f"{self._in_a_row} episodes crashed in a row, the last one ({result.sampler}, seed {result.seed}) "
                f"with: {result.error}. Correct the cause, then run the crashed episodes again with retry_crashed=true."
            )


def _start(spec: EpisodeSpec, worker: EnvWorker) -> _Running:
    state = EpisodeState.start(spec.key.seed, spec.key.repeat)
    worker.send(ResetRequest(spec.executor, spec.latency, spec.key))
    return _Running(spec, worker, state, time.perf_counter())


def _result(
    task: str,
    key: EpisodeKey,
    reply: EpisodeTrace | EpisodeCrash | WorkerError,
    duration_s: float,
    passes: Sequence[int] = (),
    evaluations: int = 0,
) -> EpisodeResult:
    """What an episode's trace says; of a crashed one what is known of it."""
    trace = reply if isinstance(reply, EpisodeTrace) else reply.trace if isinstance(reply, EpisodeCrash) else None
    crashed = not isinstance(reply, EpisodeTrace)
    if not crashed and trace is not None:
        played = [each for each in trace.inferences if each.handover is not None]
        passes = [each.passes for each in played if each.passes is not None]
        evaluations = sum(each.evaluations or 0 for each in trace.inferences)
    return EpisodeResult(
        task=task,
        sampler=key.sampler,
        seed=key.seed,
        repeat=key.repeat,
        success=trace is not None and trace.success and not crashed,
        steps=0 if trace is None else len(trace.ticks),
        return_=0.0 if trace is None else trace.return_,
        passes=tuple(passes),
        evaluations=evaluations,
        duration_s=duration_s,
        error=None if isinstance(reply, EpisodeTrace) else reply.error,
        trace=trace if not crashed else None,
    )
