"""Which inference runs, and which one to begin next."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specpolicy.control.action_buffer import ActionBuffer, Chunk
from specpolicy.control.action_space import Action
from specpolicy.control.clocks import Clock, Running
from specpolicy.control.executors import ExecutorConfig, IdleBehavior, Predictor, PredraftConfig
from specpolicy.control.inference import InferenceKind, InferenceRequest
from specpolicy.control.trace import InferenceRecord
from specpolicy.policies.observations import HistoryWindow
from specpolicy.utils.errors import format_exception


@dataclass(frozen=True)
class ObservationRecord:
    """What was observed, at which tick and when.

    Attributes:
        tick: number of the tick.
        at_s: time of the observation, seconds.
        window: ``{name: (n_obs_steps, …)}``, the present step last; empty if there is a problem.
        problem: why a policy cannot be asked about this observation; None if it can.
    """

    tick: int
    at_s: float
    window: HistoryWindow
    problem: str | None = None


@dataclass(frozen=True)
class InferenceTask:
    """An inference to begin now.

    Attributes:
        request: what to compute.
        observed: the observation that it is about (for a draft: the one that it was predicted from).
        problem: why it cannot be computed and counts as failed; None if it can.
        predicted: ticks after ``observed`` that the request's window was predicted for; None: it was not predicted.
    """

    request: InferenceRequest
    observed: ObservationRecord
    problem: str | None = None
    predicted: int | None = None

    @property
    def tick(self) -> int:
        """Tick that the chunk's first action is for."""
        return self.observed.tick + (self.predicted or 0)


class InferenceScheduler:
    """Begins one inference at a time, when the executor's configuration says so, and never breaks one off.

    The chunk that finishes a draft is for the observation of the tick at which it was due, also when the draft takes
    longer than that. A later observation would depend on how long the draft took, hence on the draft's noise, and the
    chunk would no longer have exactly the policy's distribution.

    A delay-conditioned policy is told the actions that will play until its chunk is there: those planned for as many
    ticks as the slowest of the episode's last eight chunks took from their observation to their handover, but no more
    than ``max_delay``. For a chunk from a draft this is settled before the draft begins, so that it cannot depend on
    the draft's noise. A chunk that takes longer than it was told is played all the same, and counted
    (:attr:`InferenceRecord.outran`).

    With a predictor, a policy is asked about the observation predicted as many ticks ahead, or as far ahead as actions
    are planned, and its chunk begins there: what is under way is in the observation, and no prefix is told. A chunk
    that is there sooner waits for its tick. It is requested early enough to take over when ``n_action_steps`` of
    the one before have played, unless it takes longer than these.

    Args:
        config: of the executor.
        max_delay: most actions under way that the policy continues; 0: it is told none. Nothing is told either where
            nothing plays while the policy computes, or where chunks are not aligned in time.

    Attributes:
        running: the inference under way.
        due: tick whose observation the next chunk is to be requested for.
    """

    def __init__(self, config: ExecutorConfig, max_delay: int = 0) -> None:
        self._config = config
        self._max_delay = max_delay if config.idle is IdleBehavior.REST and config.aligned else 0
        self._delays: deque[int] = deque(maxlen=8)  # ticks from observations until their chunks were there
        self._there_at: int | None = None  # tick at which the inference under way was found to have ended
        self._drafted_prefix: NDArray[np.float64] | None = None
        self.running: Running | None = None
        self.due = 0
        self._requested_at = -1  # no observation is used twice
        self._has_draft = self._drafted = False
        self._kept: ObservationRecord | None = None  # the observation that a draft was due for
        self._first_action: int | None = None  # tick that the newest chunk's first action is for
        self._durations: deque[float] = deque(maxlen=8)  # ticks that drafts and whole inferences took

    @property
    def computing(self) -> InferenceKind | None:
        """Kind of the inference under way."""
        return None if self.running is None else self.running.inference.kind

    def begun(self, running: Running) -> None:
        """Take note of the inference that was begun."""
        self.running, self._there_at = running, None

    def ended(self, clock: Clock, tick: int) -> bool:
        """Say whether the inference under way is there, and its first action due.

        Args:
            clock: of the loop.
            tick: the present one.
        """
        if self.running is None or not clock.done(self.running, tick):
            return False
        if self._there_at is None:
            self._there_at = tick
        return tick >= self.running.inference.tick

    def observe(self, observed: ObservationRecord) -> None:
        """Take note of an observation."""
        if self.computing is InferenceKind.DRAFT and observed.tick >= self.due and self._kept is None:
            self._kept = observed

    def next_task(self, present: ObservationRecord, buffer: ActionBuffer) -> InferenceTask | None:
        """Return what to compute now, which then counts as begun.

        Args:
            present: the latest observation.
            buffer: of the actions that are planned.

        Returns:
            None if an inference is under way or none is due.
        """
        if self.running is not None:
            return None
        if present.tick >= self.due:
            if self._requested_at == present.tick:
                return None
            self._requested_at = present.tick
            observed, self._kept = (self._kept if self._has_draft else None) or present, None
            kind = InferenceKind.FINISH if self._has_draft else InferenceKind.WHOLE
            self._has_draft = False
            if self._config.predictor is not None:
                return self._predicted(self._config.predictor, present, buffer)
            prefix = self._drafted_prefix if kind is InferenceKind.FINISH else self._prefix(present.tick, buffer)
            request = InferenceRequest(kind, observed.window, self._elapsed(observed.tick), prefix)
            return InferenceTask(request, observed, observed.problem)
        predraft = self._config.predraft
        if predraft is None or self._drafted or present.tick < self.due - self._lead_ticks(predraft):
            return None
        self._drafted = True
        self._drafted_prefix = self._prefix(self.due, buffer)
        ticks = self.due - present.tick
        window, problem = _predict(predraft.predict, present, ticks, self._planned(present.tick, ticks, buffer))
        request = InferenceRequest(InferenceKind.DRAFT, window, prefix=self._drafted_prefix)
        return InferenceTask(request, present, problem)

    def _prefix(self, tick: int, buffer: ActionBuffer) -> NDArray[np.float64] | None:
        """What is planned from ``tick`` on, as far as the next chunk is expected to take; None before the first one."""
        if not self._max_delay or buffer.empty:
            return None
        return _stacked(self._planned(tick, min(self._expected_delay, self._max_delay), buffer))

    def _predicted(self, predictor: Predictor, present: ObservationRecord, buffer: ActionBuffer) -> InferenceTask:
        """Ask about the observation of the tick at which the chunk is expected."""
        planned = self._planned(present.tick, self._expected_delay, buffer)
        ahead, window, problem = len(planned), present.window, present.problem
        if ahead:
            window, problem = _predict(predictor, present, ahead, planned)
        ahead = 0 if problem is not None else ahead  # a failure is told at once
        none_told = np.zeros((0, 0)) if self._max_delay and not buffer.empty else None
        request = InferenceRequest(
            InferenceKind.WHOLE, window, self._elapsed(present.tick + ahead), none_told
        )  # fmt: skip
        return InferenceTask(request, present, problem, None if buffer.empty else ahead)

    @property
    def _expected_delay(self) -> int:
        """Ticks from an observation until its chunk is there: the most of the last eight."""
        return max(self._delays, default=0)

    def _elapsed(self, tick: int) -> int | None:
        return None if self._first_action is None else max(0, tick - self._first_action)

    @staticmethod
    def _planned(tick: int, ticks: int, buffer: ActionBuffer) -> list[Action]:
        """The actions for as many ticks, as far as there are any."""
        planned: list[Action] = []
        for ahead in range(ticks):
            action = buffer.action(tick + ahead)
            if action is None:
                break
            planned.append(action.action)
        return planned

    def _lead_ticks(self, predraft: PredraftConfig) -> int:
        if predraft.ticks is not None:
            return predraft.ticks
        return max(1, math.ceil(max(self._durations, default=1.0) - 1e-9))

    def note_duration(self, inference: InferenceRecord, rate_hz: float) -> None:
        """Take note of how long an inference took that has ended."""
        if inference.kind is not InferenceKind.FINISH and inference.ended_s is not None:
            self._durations.append((inference.ended_s - inference.begun_s) * rate_hz)

    def keep_draft(self) -> None:
        """Take note that a draft is there and can be finished."""
        self._has_draft = True

    def note_sample(self, first_action: int) -> None:
        """Take note of the tick that the newest chunk's first action is for, whether or not the chunk plays."""
        self._first_action = first_action

    def handed_over(self, chunk: Chunk) -> None:
        """Take note that a chunk is being played, which says when the next one is due."""
        inference, there_at = chunk.inference, chunk.handover if self._there_at is None else self._there_at
        self._delays.append(there_at - (inference.tick - (inference.predicted or 0)))
        prefetch = self._config.prefetch_steps
        if self._config.predictor is not None:
            prefetch = min(max(prefetch, self._expected_delay), self._config.n_action_steps)
        self.due = chunk.play_end - prefetch
        self._drafted = False

    def waiting_s(self, clock: Clock) -> float | None:
        """Return for how long a chunk (not a draft) has been computed, in seconds; None if none is."""
        if self.running is None or self.running.inference.kind is InferenceKind.DRAFT:
            return None
        return clock.now() - self.running.inference.begun_s


def _stacked(actions: list[Action]) -> NDArray[np.float64]:
    return np.stack(actions) if actions else np.zeros((0, 0))


def _predict(
    predictor: Predictor, present: ObservationRecord, ticks: int, planned: list[Action]
) -> tuple[HistoryWindow, str | None]:
    """The window predicted, or the present one and why it could not be."""
    if present.problem is not None:
        return present.window, present.problem
    try:
        return predictor(present.window, ticks, _stacked(planned)), None
    except Exception as error:  # a fault of the episode, not the end of the loop
        return present.window, f"the observation could not be predicted: {format_exception(error)}"
