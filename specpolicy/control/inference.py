"""A diffusion policy and a sampler, for one control loop or for many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.policies.observations import HistoryWindow
from specpolicy.rollout.workers import format_exception
from specpolicy.speculative.predraft import PreDraft


class InferenceKind(StrEnum):
    """Kinds of computation."""

    WHOLE = "whole"
    """A chunk for the present observation, from nothing."""

    DRAFT = "draft"
    """A chain ahead of time, under a predicted observation; the policy keeps it for the next :attr:`FINISH`."""

    FINISH = "finish"
    """A chunk for the present observation, with the chain drafted before."""


@dataclass(frozen=True)
class InferenceRequest:
    """One computation that a control loop wants.

    Attributes:
        kind: what to compute.
        window: the observations to compute it from, ``{name: (n_obs_steps, …)}``, the present step last.
    """

    kind: InferenceKind
    window: HistoryWindow


@dataclass(frozen=True)
class InferenceResult:
    """What came of a :class:`InferenceRequest`.

    Attributes:
        actions: shape ``(n, action_dim)``, environment units; the first is for the tick of the observation. None
            after a draft, or if the computation failed.
        passes: sequential network passes; None where they are not told.
        evaluations: rows that the network computed; None likewise.
        acceptance: share of drafted steps that were accepted; None without drafts.
        seconds: wall time of the computation; None if it shared its passes with other loops.
        error: why the computation failed; None if it did not.
    """

    actions: NDArray[np.float64] | None = None
    passes: int | None = None
    evaluations: int | None = None
    acceptance: float | None = None
    seconds: float | None = None
    error: str | None = None


class LoopPolicy(Protocol):
    """A policy as a control loop sees it; :class:`SampledPolicy` makes one of a diffusion policy and a sampler."""

    @property
    def n_obs_steps(self) -> int:
        """Observation steps that it sees."""
        ...

    @property
    def predrafts(self) -> bool:
        """Whether it can answer :attr:`InferenceKind.DRAFT` and :attr:`InferenceKind.FINISH`."""
        ...

    def begin(self, seed: int, repeat: int) -> None:
        """A new episode: random numbers from its own stream, no draft left over."""
        ...

    def answer(self, question: InferenceRequest) -> InferenceResult:
        """Compute; failures are answers too."""
        ...


def split_predraft(draft: PreDraft) -> list[PreDraft]:
    """A pre-draft of one chain for each chain."""
    return [
        PreDraft(draft.states[:, row : row + 1], draft.x0[:, row : row + 1], draft.noise[:, row : row + 1])
        for row in range(draft.states.shape[1])
    ]


def join_predrafts(drafts: Sequence[PreDraft]) -> PreDraft:
    """One pre-draft of all chains, in order; they must be of one sampler."""
    return PreDraft(
        torch.cat([each.states for each in drafts], 1),
        torch.cat([each.x0 for each in drafts], 1),
        torch.cat([each.noise for each in drafts], 1),
    )


Generator = torch.Generator
Streams = Callable[[int, int], Generator]
"""``(seed, repeat)`` → the random stream of an episode."""


class SampledChunk(Protocol):
    """What a policy's ``act`` gives."""

    @property
    def prediction(self) -> NDArray[np.float32]:
        """The whole chunk, shape ``(batch, horizon, action_dim)``, environment units."""
        ...

    @property
    def result(self) -> Any:
        """The sampler's account: ``passes`` and ``evaluations`` of shape ``(batch,)``; rounds where it has them."""
        ...


class ChunkPolicy(Protocol):
    """As much of :class:`specpolicy.policies.DiffusionPolicy` as a control loop needs.

    For pre-drafting it also has ``predraft(observation, sampler, generator)``, which returns a
    :class:`specpolicy.speculative.predraft.PreDraft`, and ``act`` takes one as ``predraft=``.
    """

    @property
    def config(self) -> Any:
        """With ``n_obs_steps``."""
        ...

    def predict_action(
        self, observation: Mapping[str, NDArray[Any]], sampler: Any, generator: Sequence[Generator]
    ) -> SampledChunk:
        """One chunk for each observation: arrays ``(batch, n_obs_steps, …)``, one generator an entry."""
        ...


@dataclass
class EpisodeState:
    """What belongs to one episode: its random stream, and the draft that waits for its observation."""

    generator: Generator
    draft: PreDraft | None = None


def can_predraft(policy: object, sampler: object) -> bool:
    """Whether a policy and a sampler can compute ahead of an observation."""
    return hasattr(policy, "predraft") and hasattr(sampler, "predraft")


def infer_batch(
    policy: ChunkPolicy, sampler: Any, asked: Sequence[tuple[EpisodeState, InferenceRequest]], timed: bool = False
) -> list[InferenceResult]:
    """Answers in the order of asking, those of one kind from one computation.

    Each session draws from its own generator, so its answer does not depend on its neighbours. If a computation
    fails, each of its entries is tried alone with its random stream wound back, so that only the culprit fails.

    Args:
        policy: whom to ask. sampler: handed to it.
        asked: questions with the sessions that they belong to, each session at most once.
        timed: one by one, each with its own wall time.
    """
    answers: list[InferenceResult | None] = [None] * len(asked)
    for kind in InferenceKind:
        places = [place for place, (_, question) in enumerate(asked) if question.kind is kind]
        groups = [[place] for place in places] if timed else [places]
        for group in groups:
            for place, answer in zip(group, _attempt(policy, sampler, [asked[at] for at in group]), strict=True):
                answers[place] = answer
    return [answer for answer in answers if answer is not None]


def _attempt(
    policy: ChunkPolicy, sampler: Any, asked: list[tuple[EpisodeState, InferenceRequest]]
) -> list[InferenceResult]:
    if not asked:
        return []
    states = [session.generator.get_state() for session, _ in asked]
    begun = time.perf_counter()
    try:
        answers = _compute(policy, sampler, asked)
    except Exception as error:
        if len(asked) == 1:
            return [InferenceResult(error=format_exception(error), seconds=time.perf_counter() - begun)]
        for (session, _), state in zip(asked, states, strict=True):
            session.generator.set_state(state)
        return [answer for each in asked for answer in _attempt(policy, sampler, [each])]
    if len(asked) > 1:
        return answers
    (answer,) = answers
    return [_timed(answer, time.perf_counter() - begun)]


def _timed(answer: InferenceResult, seconds: float) -> InferenceResult:
    return InferenceResult(answer.actions, answer.passes, answer.evaluations, answer.acceptance, seconds, answer.error)


def _compute(
    policy: ChunkPolicy, sampler: Any, asked: list[tuple[EpisodeState, InferenceRequest]]
) -> list[InferenceResult]:
    sessions, questions = [session for session, _ in asked], [question for _, question in asked]
    observation = {name: np.stack([each.window[name] for each in questions]) for name in questions[0].window}
    generators = [session.generator for session in sessions]
    ready: Any = policy  # for drafts, too: a loop asks only where can_predraft() says so
    kind = questions[0].kind
    if kind is InferenceKind.DRAFT:
        for session, draft in zip(
            sessions, split_predraft(ready.predraft(observation, sampler, generators)), strict=True
        ):
            session.draft = draft
        return [InferenceResult()] * len(asked)
    if kind is InferenceKind.FINISH:
        drafts = [session.draft for session in sessions if session.draft is not None]
        if len(drafts) < len(sessions):
            raise RuntimeError("a draft was to be finished that was never made")
        answers = _answers(
            policy, ready.predict_action(observation, sampler, generators, predraft=join_predrafts(drafts)), len(asked)
        )
        for session in sessions:
            session.draft = None  # a draft is used once
        return answers
    return _answers(policy, policy.predict_action(observation, sampler, generators), len(asked))


def _answers(policy: ChunkPolicy, chunk: SampledChunk, batch: int) -> list[InferenceResult]:
    first = policy.config.n_obs_steps - 1  # the action that belongs to the present observation
    actions = np.asarray(chunk.prediction, dtype=np.float64)[:, first:]
    if actions.ndim != 3 or len(actions) != batch or actions.shape[1] < 1:
        raise ValueError(
            f"the policy's prediction has shape {chunk.prediction.shape}; expected (batch={batch}, more than "
            f"{first} actions, action_dim)"
        )
    account = chunk.result
    return [
        InferenceResult(
            actions[row], int(account.passes[row]), int(account.evaluations[row]), _acceptance(account, row)
        )
        for row in range(batch)
    ]


def _acceptance(account: Any, row: int) -> float | None:
    accepted: Tensor | None = getattr(account, "accepted", None)
    proposed: Tensor | None = getattr(account, "proposed", None)
    if accepted is None or proposed is None:
        return None
    drafted = int(proposed[:, row].clamp(min=0).sum())
    return int(accepted[:, row].clamp(min=0).sum()) / drafted if drafted else None


def plain_stream(seed: int, repeat: int) -> Generator:
    """A stream for an episode, where nobody asks for another."""
    return Generator().manual_seed((seed * 1_000_003 + repeat) % 2**31)


class PolicyRunner:
    """A policy and a sampler, ready for a :class:`specpolicy.control.ControlLoop`.

    Args:
        policy: e.g. :class:`specpolicy.policies.DiffusionPolicy`.
        sampler: handed to it.
        streams: makes the random stream of an episode from its seed and repeat.
    """

    def __init__(self, policy: ChunkPolicy, sampler: Any, streams: Streams = plain_stream) -> None:
        self._policy, self._sampler, self._streams = policy, sampler, streams
        self._session = EpisodeState(streams(0, 0))

    @property
    def n_obs_steps(self) -> int:
        """Observation steps that the policy sees."""
        return int(self._policy.config.n_obs_steps)

    @property
    def predrafts(self) -> bool:
        """Whether both policy and sampler have ``predraft``."""
        return can_predraft(self._policy, self._sampler)

    def begin(self, seed: int, repeat: int) -> None:
        """A new episode with its own random stream."""
        self._session = EpisodeState(self._streams(seed, repeat))

    def answer(self, question: InferenceRequest) -> InferenceResult:
        """Compute, and say how long it took."""
        return infer_batch(self._policy, self._sampler, [(self._session, question)], timed=True)[0]
