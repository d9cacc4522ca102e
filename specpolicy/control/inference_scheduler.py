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
from specpolicy.control.executors import ExecutorConfig, IdleBehavior, PredraftConfig
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
    """

    request: InferenceRequest
    observed: ObservationRecord
    problem: str | None = None


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
        self._delays: deque[int] = deque(maxlen=8)  # ticks from observations to the handover of their chunks
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
            elapsed = None if self._first_action is None else max(0, observed.tick - self._first_action)
            prefix = self._drafted_prefix if kind is InferenceKind.FINISH else self._prefix(present.tick, buffer)
            return InferenceTask(InferenceRequest(kind, observed.window, elapsed, prefix), observed, observed.problem)
        predraft = self._config.predraft
        if predraft is None or self._drafted or present.tick < self.due - self._lead_ticks(predraft):
            return None
        self._drafted = True
        self._drafted_prefix = self._prefix(self.due, buffer)
        problem, window = present.problem, present.window
        if problem is None:
            try:
                window = predraft.predictor(present.window, self.due - present.tick)
            except Exception as error:  # a fault of the episode, not the end of the loop
                problem = f"the observation could not be predicted: {format_exception(error)}"
        request = InferenceRequest(InferenceKind.DRAFT, window, prefix=self._drafted_prefix)
        return InferenceTask(request, present, problem)

    def _prefix(self, tick: int, buffer: ActionBuffer) -> NDArray[np.float64] | None:
        """What is planned from ``tick`` on, as far as the next chunk is expected to take; None before the first one."""
        if not self._max_delay or buffer.empty:
            return None
        planned: list[Action] = []
        for ahead in range(min(max(self._delays, default=0), self._max_delay)):
            action = buffer.action(tick + ahead)
            if action is None:
                break
            planned.append(action.action)
        return np.stack(planned) if planned else np.zeros((0, 0))

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
        self.due = chunk.play_end - self._config.prefetch_steps
        self._delays.append(chunk.handover - chunk.inference.tick)
        self._drafted = False

    def waiting_s(self, clock: Clock) -> float | None:
        """Return for how long a chunk (not a draft) has been computed, in seconds; None if none is."""
        if self.running is None or self.running.inference.kind is InferenceKind.DRAFT:
            return None
        return clock.now() - self.running.inference.begun_s
