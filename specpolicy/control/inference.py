"""The one way to ask a policy for action chunks: :class:`InferenceRequest` → :func:`infer_batch` → results.

Used by the episode runner, the control loop and the server. The convention from ``(seed, repeat)`` to an episode's
random stream, :func:`episode_generator`, lives here, too: one seed means one episode everywhere.
"""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.policies.observations import HistoryWindow
from specpolicy.policies.protocols import (
    ChunkPolicy,
    ChunkReusingSampler,
    Observation,
    PredictedChunk,
    PreviousChunk,
    SampleCost,
)
from specpolicy.speculative.predraft import PreDraft
from specpolicy.utils.errors import format_exception

_log = logging.getLogger(__name__)
_DOMAIN = 0x5EED_9011C7  # separates these streams from others that are made from the same seeds


def episode_generator(seed: SupportsIndex, repeat: SupportsIndex = 0) -> torch.Generator:
    """Make the policy's random stream for one episode.

    The generator lives on the CPU wherever the policy is, so that the numbers are the same on any device. All samplers
    draw from the same stream at the same ``(seed, repeat)``, so comparisons are paired in the noise as far as their
    draws correspond. torch's CPU generator keeps 32 bits of a seed: among ``n`` episodes two share a stream with
    probability about ``n² / 2³³`` (1 in 8000 for a thousand).

    Args:
        seed: seed of the initial state, a non-negative integer (numpy's included).
        repeat: number of the repeat from this initial state, a non-negative integer.

    Returns:
        A generator at the beginning of the episode's stream.

    Raises:
        TypeError: not an integer.
        ValueError: negative.
    """
    entropy = [_DOMAIN, checked_seed(seed), checked_seed(repeat, "repeat")]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(state[0]))


def checked_seed(seed: SupportsIndex, name: str = "seed") -> int:
    """Turn a seed into a Python integer.

    Args:
        seed: an integer of any kind; bool is refused.
        name: what the message calls it.

    Returns:
        The same number.

    Raises:
        TypeError: not an integer.
        ValueError: negative.
    """
    try:
        if isinstance(seed, bool | np.bool_):
            raise TypeError
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"{name}={seed!r:.80} is {type(seed).__name__}; expected a non-negative integer") from None
    if number < 0:
        raise ValueError(f"{name}={number}; expected a non-negative integer")
    return number


class InferenceKind(StrEnum):
    """Kinds of inference."""

    WHOLE = "whole"
    """A chunk for the present observation, from scratch."""

    DRAFT = "draft"
    """A chain ahead of time, under a predicted observation; the episode keeps it for the next :attr:`FINISH`."""

    FINISH = "finish"
    """A chunk for the present observation, from the chain drafted before."""


@dataclass(frozen=True)
class InferenceRequest:
    """One inference that somebody wants.

    Attributes:
        kind: what to compute.
        window: the observations to compute it from, ``{name: (n_obs_steps, …)}``, the present step last.
        elapsed: ticks from the first action of the last chunk to the present step; None for the policy's
            ``n_action_steps``. Only samplers that start from the last chunk look at it.
        prefix: actions that play from the observation's step on while it is computed, shape ``(d, action_dim)``,
            environment units, for a delay-conditioned policy; None: none, or the policy takes none. The same for a
            draft and its finish.
    """

    kind: InferenceKind
    window: HistoryWindow
    elapsed: int | None = None
    prefix: NDArray[np.float64] | None = None

    @property
    def under_way(self) -> int | None:
        """Length of the prefix; None without one."""
        return None if self.prefix is None else len(self.prefix)


@dataclass(frozen=True)
class InferenceResult:
    """The outcome of an :class:`InferenceRequest`.

    Attributes:
        actions: shape ``(n, action_dim)``, environment units, the first for the step of the observation; all that the
            policy predicted from there on, ``n_action_steps`` or more. None after a draft and after a failure.
        passes: sequential network evaluations; None where unknown.
        evaluations: rows that the network computed; None where unknown.
        acceptance: share of drafted steps that were accepted; None without drafts.
        seconds: wall time of the inference; None if it shared a batch.
        error: why it failed; None if it did not.
    """

    actions: NDArray[np.float64] | None = None
    passes: int | None = None
    evaluations: int | None = None
    acceptance: float | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass
class EpisodeState:
    """What an episode keeps between inferences.

    Attributes:
        generator: its random stream; inference advances it.
        draft: the chain that waits for its observation.
        last_sample: the last chunk as it was sampled, normalized, shape ``(horizon, trajectory_dim)``; kept for
            samplers that start from there.
    """

    generator: torch.Generator
    draft: PreDraft | None = None
    last_sample: Tensor | None = None

    @classmethod
    def start(cls, seed: SupportsIndex, repeat: SupportsIndex = 0) -> EpisodeState:
        """Begin the episode ``(seed, repeat)``; see :func:`episode_generator`."""
        return cls(episode_generator(seed, repeat))

    def forget(self) -> None:
        """Begin another episode that goes on with the same random stream."""
        self.draft = self.last_sample = None


class LoopPolicy(Protocol):
    """A policy as a control loop sees it; :class:`PolicyRunner` makes one of a diffusion policy and a sampler."""

    @property
    def n_obs_steps(self) -> int:
        """Observation steps that it sees."""
        ...

    @property
    def predrafts(self) -> bool:
        """Whether it can answer :attr:`InferenceKind.DRAFT` and :attr:`InferenceKind.FINISH`."""
        ...

    def reset(self, seed: int, repeat: int) -> None:
        """Begin an episode: its own random stream, no draft from the one before."""
        ...

    def infer(self, request: InferenceRequest) -> InferenceResult:
        """Compute; a failure is a result with an ``error``."""
        ...


class PolicyRunner:
    """A policy and a sampler, ready for a :class:`specpolicy.control.ControlLoop`.

    Args:
        policy: e.g. :class:`specpolicy.DiffusionPolicy`.
        sampler: handed to it.
    """

    def __init__(self, policy: ChunkPolicy, sampler: Any) -> None:
        self._policy, self._sampler = policy, sampler
        self._state = EpisodeState.start(0)

    @property
    def n_obs_steps(self) -> int:
        """Observation steps that the policy sees."""
        return int(self._policy.config.n_obs_steps)

    @property
    def max_delay(self) -> int:
        """Longest run of actions under way that the policy continues; 0 for policies that continue none."""
        return max_delay_of(self._policy)

    @property
    def predrafts(self) -> bool:
        """Whether both policy and sampler have ``predraft``."""
        return can_predraft(self._policy, self._sampler)

    def reset(self, seed: int, repeat: int = 0) -> None:
        """Begin an episode with its own random stream."""
        self._state = EpisodeState.start(seed, repeat)

    def infer(self, request: InferenceRequest) -> InferenceResult:
        """Compute, and say how long it took."""
        return infer_batch(self._policy, self._sampler, [(self._state, request)], timed=True)[0]


def max_delay_of(policy: object) -> int:
    """Say how long a prefix of actions under way a policy was trained to continue.

    Args:
        policy: a delay-conditioned one has ``config.max_delay``.

    Returns:
        D in steps; 0 for all others.
    """
    return int(getattr(getattr(policy, "config", None), "max_delay", 0))


def can_predraft(policy: object, sampler: object) -> bool:
    """Say whether a policy and a sampler can compute ahead of an observation.

    Args:
        policy: has ``predraft`` if it can.
        sampler: likewise.

    Returns:
        Whether both can.
    """
    return hasattr(policy, "predraft") and hasattr(sampler, "predraft")


def infer_batch(
    policy: ChunkPolicy,
    sampler: Any,
    requests: Sequence[tuple[EpisodeState, InferenceRequest]],
    timed: bool = False,
    describe_error: Callable[[Exception], str] = format_exception,
) -> list[InferenceResult]:
    """Answer requests of several episodes, those of one kind from one batch.

    Each episode draws from its own generator, so its result does not depend on who shares the batch (up to the rounding
    of batched arithmetic). If a batch fails, all random streams are rewound and each request is tried alone, so that
    only the culprit fails.

    Args:
        policy: predicts chunks.
        sampler: handed to the policy.
        requests: each with its episode's state, which is advanced; an episode at most once.
        timed: run them one by one, each with its own wall time.
        describe_error: writes what :attr:`InferenceResult.error` says of an exception.

    Returns:
        Results in the order of ``requests``.
    """
    results: dict[int, InferenceResult] = {}
    for kind in InferenceKind:
        places = [place for place, (_, request) in enumerate(requests) if request.kind is kind]
        for group in [[place] for place in places] if timed else [places] if places else []:
            answers = _infer_or_retry(policy, sampler, [requests[place] for place in group], describe_error)
            results.update(zip(group, answers, strict=True))
    return [results[place] for place in range(len(requests))]


def _infer_or_retry(
    policy: ChunkPolicy,
    sampler: Any,
    requests: Sequence[tuple[EpisodeState, InferenceRequest]],
    describe_error: Callable[[Exception], str],
) -> list[InferenceResult]:
    streams = [state.generator.get_state() for state, _ in requests]
    begun = time.perf_counter()
    try:
        results = _infer(policy, sampler, requests)
    except Exception as error:
        for (state, _), stream in zip(requests, streams, strict=True):
            state.generator.set_state(stream)
        if len(requests) == 1:
            return [InferenceResult(error=describe_error(error), seconds=time.perf_counter() - begun)]
        _log.warning(
            "a batch of %d failed (%s); trying its requests one by one", len(requests), format_exception(error)
        )
        return [_infer_or_retry(policy, sampler, [each], describe_error)[0] for each in requests]
    return results if len(results) > 1 else [replace(results[0], seconds=time.perf_counter() - begun)]


def _infer(
    policy: ChunkPolicy, sampler: Any, requests: Sequence[tuple[EpisodeState, InferenceRequest]]
) -> list[InferenceResult]:
    """Results of requests of one kind."""
    states, kind = [state for state, _ in requests], requests[0][1].kind
    observation = _stack([request.window for _, request in requests])
    generators = [state.generator for state in states]
    predrafting: Any = policy  # drafts are requested only where can_predraft() says so, prefixes where max_delay_of()
    prefixes = [request.prefix for _, request in requests]
    told = {} if all(each is None for each in prefixes) else {"prefix": prefixes}
    if kind is InferenceKind.DRAFT:
        for state, draft in zip(
            states, split_predraft(predrafting.predraft(observation, sampler, generators, **told)), strict=True
        ):
            state.draft = draft
        return [InferenceResult()] * len(requests)
    if kind is InferenceKind.WHOLE:
        reuses = isinstance(sampler, ChunkReusingSampler)
        used = sampler.continuing([_previous(policy, *each) for each in requests]) if reuses else sampler
        chunk = predrafting.predict_action(observation, used, generators, **told)
        results = _results(policy, chunk, len(requests))
        if reuses:
            sampled: Any = chunk.result
            for state, sample in zip(states, sampled.sample, strict=True):
                state.last_sample = sample
        return results
    drafts = [state.draft for state in states if state.draft is not None]
    if len(drafts) < len(states):
        raise RuntimeError("a draft was to be finished that was never made")
    chunk = predrafting.predict_action(observation, sampler, generators, predraft=join_predrafts(drafts), **told)
    results = _results(policy, chunk, len(requests))
    for state in states:
        state.draft = None  # a draft is used once
    return results


def _previous(policy: ChunkPolicy, state: EpisodeState, request: InferenceRequest) -> PreviousChunk | None:
    """What the episode's last chunk is to a sampler that starts from there."""
    if state.last_sample is None:
        return None
    elapsed = policy.config.n_action_steps if request.elapsed is None else request.elapsed
    # A sample begins with actions for past observation steps, and so does the next one: they move on alike.
    return PreviousChunk(state.last_sample, elapsed)


def steady_state(policy: ChunkPolicy, sampler: Any, observation: Observation, batch: int = 1) -> Any:
    """Bring a sampler where it is after an episode's first chunk, for measurements and warm-up.

    Args:
        policy: predicts chunks.
        sampler: any.
        observation: of one entry, ``{name: (1, n_obs_steps, …)}``, that the chunk before is made for.
        batch: entries that the returned sampler is for.

    Returns:
        The sampler itself; of one that starts from the last chunk, the one bound to such a chunk.
    """
    if not isinstance(sampler, ChunkReusingSampler):
        return sampler
    chunk: Any = policy.predict_action(observation, sampler, [episode_generator(0)])
    return sampler.continuing([PreviousChunk(chunk.result.sample[0], policy.config.n_action_steps)] * batch)


def _stack(windows: Sequence[HistoryWindow]) -> dict[str, NDArray[Any]]:
    """The windows of a batch; ``{name: (batch, n_obs_steps, …)}``."""
    for window in windows[1:]:
        if set(window) != set(windows[0]):
            raise ValueError(f"observations of one batch have different keys: {sorted(window)}, {sorted(windows[0])}")
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def _results(policy: ChunkPolicy, chunk: PredictedChunk, batch: int) -> list[InferenceResult]:
    config = policy.config
    first = int(getattr(config, "first_executed", config.n_obs_steps - 1))  # the action of the observation's step
    actions = np.asarray(chunk.prediction, dtype=np.float64)[:, first:]
    if actions.ndim != 3 or len(actions) != batch or actions.shape[1] < 1:
        raise ValueError(
            f"the policy's prediction has shape {np.shape(chunk.prediction)}; expected (batch={batch}, more than "
            f"{first} actions, action_dim)"
        )
    cost = chunk.result
    return [
        InferenceResult(actions[row], int(cost.passes[row]), int(cost.evaluations[row]), acceptance_of(cost, row))
        for row in range(batch)
    ]


def acceptance_of(cost: SampleCost, row: int) -> float | None:
    """Compute the share of drafted steps that were accepted in one chain.

    Args:
        cost: of a batch of chains.
        row: which chain.

    Returns:
        Between 0 and 1; None if nothing was drafted.
    """
    accepted, proposed = getattr(cost, "accepted", None), getattr(cost, "proposed", None)
    if accepted is None or proposed is None:
        return None
    drafted = int(proposed[:, row].clamp(min=0).sum())
    return int(accepted[:, row].clamp(min=0).sum()) / drafted if drafted else None


def split_predraft(draft: PreDraft) -> list[PreDraft]:
    """Split a pre-draft of several chains.

    Args:
        draft: of ``n`` chains.

    Returns:
        ``n`` pre-drafts of one chain each.
    """
    return [
        PreDraft(draft.states[:, row : row + 1], draft.x0[:, row : row + 1], draft.noise[:, row : row + 1])
        for row in range(draft.states.shape[1])
    ]


def join_predrafts(drafts: Sequence[PreDraft]) -> PreDraft:
    """Join pre-drafts of one sampler.

    Args:
        drafts: at least one.

    Returns:
        One pre-draft of all their chains, in order.
    """
    return PreDraft(
        torch.cat([each.states for each in drafts], 1),
        torch.cat([each.x0 for each in drafts], 1),
        torch.cat([each.noise for each in drafts], 1),
    )
