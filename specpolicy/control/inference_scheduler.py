"""What is being computed, and what is to be computed next."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from specpolicy.control.action_buffer import Chunk
from specpolicy.control.clocks import Clock, Running
from specpolicy.control.executors import ExecutorConfig, PredraftConfig
from specpolicy.control.inference import InferenceKind, InferenceRequest
from specpolicy.control.trace import InferenceRecord
from specpolicy.policies.observations import HistoryWindow


@dataclass(frozen=True)
class ObservationRecord:
    """What was observed, at which tick and when."""

    tick: int
    at_s: float
    window: HistoryWindow


@dataclass(frozen=True)
class InferenceTask:
    """A question, and the observation that it is about (for a draft: the one that it was predicted from)."""

    question: InferenceRequest
    observed: ObservationRecord


class InferenceScheduler:
    """One computation at a time, begun when the rules say so and never broken off.

    The chunk that finishes a draft is for the observation of the tick at which it was due, also when the draft takes
    longer than that. Were a later observation taken, it would depend on how long the draft took, hence on the draft's
    noise, and the chunk would no longer have exactly the policy's law.

    Attributes:
        running: the computation under way.
        due: tick whose observation the next chunk is to be asked for.
    """

    def __init__(self, rules: ExecutorConfig) -> None:
        self._rules = rules
        self.running: Running | None = None
        self.due = 0
        self._asked_at = -1  # no observation is asked about twice
        self._has_draft = self._drafted = False
        self._kept: ObservationRecord | None = None  # the observation that a draft was due for
        self._durations: deque[float] = deque(maxlen=8)  # ticks that drafts and whole inferences took

    @property
    def computing(self) -> InferenceKind | None:
        """What is under way."""
        return None if self.running is None else self.running.job.kind

    def observe(self, observed: ObservationRecord) -> None:
        """Take note of an observation that comes while something is being computed."""
        if self.computing is InferenceKind.DRAFT and observed.tick >= self.due and self._kept is None:
            self._kept = observed

    def next_task(self, present: ObservationRecord) -> InferenceTask | None:
        """What to compute now, if the desk is free for it; None: nothing. It counts as begun."""
        if self.running is not None:
            return None
        if present.tick >= self.due:
            if self._asked_at == present.tick:
                return None
            self._asked_at = present.tick
            observed, self._kept = (self._kept if self._has_draft else None) or present, None
            kind = InferenceKind.FINISH if self._has_draft else InferenceKind.WHOLE
            self._has_draft = False
            return InferenceTask(InferenceRequest(kind, observed.window), observed)
        ahead = self._rules.ahead
        if ahead is None or self._drafted or present.tick < self.due - self._begin_ahead(ahead):
            return None
        self._drafted = True
        return InferenceTask(
            InferenceRequest(InferenceKind.DRAFT, ahead.predictor(present.window, self.due - present.tick)), present
        )

    def _begin_ahead(self, ahead: PredraftConfig) -> int:
        if ahead.ticks is not None:
            return ahead.ticks
        return max(1, math.ceil(max(self._durations, default=1.0) - 1e-9))

    def note_duration(self, job: InferenceRecord, rate_hz: float) -> None:
        """Take note of how long a computation took that has ended."""
        if job.kind is not InferenceKind.FINISH and job.ended_s is not None:
            self._durations.append((job.ended_s - job.begun_s) * rate_hz)

    def keep_draft(self) -> None:
        """A draft is there and can be finished."""
        self._has_draft = True

    def handed_over(self, chunk: Chunk) -> None:
        """A chunk is being played: the next one is due ``lead`` ticks before the end of what is planned of it."""
        self.due = chunk.play_end - self._rules.lead
        self._drafted = False

    def waiting_s(self, clock: Clock) -> float | None:
        """For how long a chunk (not a draft) has been computed; None if none is."""
        if self.running is None or self.running.job.kind is InferenceKind.DRAFT:
            return None
        return clock.now() - self.running.job.begun_s
