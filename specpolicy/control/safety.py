"""The gate that every action passes on its way to the robot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np

from specpolicy.control.action_buffer import ActionBuffer, BufferedAction, Chunk
from specpolicy.control.action_space import Action, ActionSpec, Limits
from specpolicy.control.inference import InferenceResult
from specpolicy.control.trace import InferenceRecord


class Fault(StrEnum):
    """What a guard objects to."""

    NON_FINITE = "non_finite"
    """NaN or infinity: in a chunk, which is then refused as a whole, or in a blend of several."""

    OUT_OF_RANGE = "out_of_range"
    """An action outside the environment's limits."""

    FAILURE = "failure"
    """The computation of a chunk raised an exception, or gave actions of a wrong shape."""

    STALE = "stale"
    """An action from an observation that is too old."""

    MISSED = "missed"
    """A tick for which there is no action, because the next chunk is late."""

    LATE = "late"
    """A tick that is sent too long after it was due."""


class Response(StrEnum):
    """What is done instead."""

    SEND = "send"
    """The action is sent all the same, and counted."""

    CLIP = "clip"
    """The nearest action within the limits."""

    HOLD = "hold"
    """Standstill at once: rates zero, states kept."""

    BRAKE = "brake"
    """Rates go down to zero over some ticks, states are kept."""

    LAST_SAFE = "last_safe"
    """The last chunk that nothing was wrong with is played on to its end, then the robot holds."""

    STOP = "stop"
    """Hold, and end the episode."""


_STILL = frozenset({Response.HOLD, Response.BRAKE, Response.STOP})
POSSIBLE: Mapping[Fault, frozenset[Response]] = {
    Fault.NON_FINITE: _STILL | {Response.LAST_SAFE},
    Fault.OUT_OF_RANGE: _STILL | {Response.LAST_SAFE, Response.CLIP},
    Fault.FAILURE: _STILL | {Response.LAST_SAFE},
    Fault.STALE: _STILL | {Response.SEND},
    Fault.MISSED: _STILL,
    Fault.LATE: _STILL | {Response.SEND},
}
"""Responses that make sense for each fault; nothing that has not been checked can be sent."""


@dataclass(frozen=True)
class Guards:
    """The response to each fault, and the thresholds.

    Attributes:
        non_finite, out_of_range, failure, stale, missed, late: a :class:`Response` each, or its name.
        tolerance: how far outside the limits an action may lie and still count as inside.
        max_age_s: actions from observations older than this are stale; None: none is.
        deadline_s: a chunk that takes longer than this is late, also while its executor pauses for it; None: it is
            late when the robot has run out of actions.
        late_s: a tick sent so long after it was due is late; None: half a tick.
        brake_ticks: ticks in which a brake comes to rest, at least 1.
        give_up_after: stop after so many chunks in a row that failed or were refused; None: never.

    Raises:
        ValueError: an unknown response, one that makes no sense for its fault, or a threshold that is not positive.
    """

    non_finite: Response = Response.LAST_SAFE
    out_of_range: Response = Response.CLIP
    failure: Response = Response.LAST_SAFE
    stale: Response = Response.HOLD
    missed: Response = Response.HOLD
    late: Response = Response.SEND
    tolerance: float = 1e-6
    max_age_s: float | None = None
    deadline_s: float | None = None
    late_s: float | None = None
    brake_ticks: int = 4
    give_up_after: int | None = 20

    def __post_init__(self) -> None:
        for fault in Fault:
            asked, possible = getattr(self, fault.value), POSSIBLE[fault]
            if asked not in possible:
                known = ", ".join(sorted(possible))
                raise ValueError(f"guards: {fault.value}={asked!r}; possible responses are {known}")
            object.__setattr__(self, fault.value, Response(asked))  # a configuration gives its name
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s") and value is not None and not value > 0:
                raise ValueError(f"guards: {field.name}={value}; expected a positive number of seconds, or null")
        if self.brake_ticks < 1 or self.tolerance < 0 or (self.give_up_after is not None and self.give_up_after < 1):
            raise ValueError(
                f"guards: brake_ticks={self.brake_ticks} and give_up_after={self.give_up_after} must be at least 1, "
                f"tolerance={self.tolerance} not negative"
            )

    def response(self, fault: Fault) -> Response:
        """What to do about ``fault``."""
        response: Response = getattr(self, fault.value)
        return response


class UnsafeAction(RuntimeError):
    """An action that no guard may let through came to the gate's end: a fault of this library."""


@dataclass(frozen=True)
class TickContext:
    """A tick, as the gate needs to know it.

    Attributes:
        tick: its number.
        now_s: the time.
        late_s: how long ago it was due.
        pausing: the executor holds at this tick by design, waiting for a chunk that was asked for ``waiting_s`` ago.
        waiting_s: None if no chunk is being computed.
    """

    tick: int
    now_s: float
    late_s: float
    pausing: bool
    waiting_s: float | None


@dataclass(frozen=True)
class SentAction:
    """An action on its way, and why it is this one; see :class:`specpolicy.control.StepRecord`."""

    action: Action
    source: str
    chunk: Chunk | None = None
    fault: Fault | None = None
    response: Response | None = None


class SafetyFilter:
    """Checks chunks when they come and actions before they go, for one episode.

    Args:
        guards: thresholds and responses.
        meaning, limits: of actions.
        first: the action of a robot that has not been told anything yet; see :meth:`ActionSpec.first`.
        rate_hz: ticks a second.

    Attributes:
        faults: how often each fault occurred.
        stopped: the fault for which the episode must end.
    """

    def __init__(self, guards: Guards, meaning: ActionSpec, limits: Limits, first: Action, rate_hz: float) -> None:
        self._guards, self._meaning, self._limits = guards, meaning, limits
        self._late_s = guards.late_s if guards.late_s is not None else 0.5 / rate_hz
        self._last = limits.clip(first)
        self._brake_from: Action | None = None
        self._braked = 0
        self._standing: Fault | None = None
        self._refused = 0
        self.faults: Counter[str] = Counter()
        self.stopped: Fault | None = None

    def admit(self, job: InferenceRecord, answer: InferenceResult, plan: ActionBuffer, tick: int) -> Chunk | None:
        """Let a chunk into the plan, or refuse it and give None; a refusal stands until the next chunk is admitted."""
        fault = self._fault_of(answer)
        job.error = answer.error
        if fault is None:
            assert answer.actions is not None
            self._refused = 0
            chunk = plan.adopt(job, answer.actions, tick)
            if chunk is None:
                self.faults[Fault.STALE] += 1  # every one of its actions was for a tick that has passed
            else:
                job.handover, self._standing = tick, None
            return chunk
        self.faults[fault] += 1
        self._standing = fault
        self._refused += 1
        if self._guards.response(fault) is Response.STOP or self._refused == self._guards.give_up_after:
            self.stopped = fault
        return None

    def note_draft(self, job: InferenceRecord, answer: InferenceResult) -> bool:
        """Take note of a draft that has ended; False if it failed. Nothing was to be played from it."""
        job.error = answer.error
        if answer.error is not None:
            self.faults[Fault.FAILURE] += 1
        return answer.error is None

    def send(self, moment: TickContext, plan: ActionBuffer) -> SentAction:
        """The action to send now."""
        if self.stopped is not None:
            return self._pass(self._still(Response.STOP, self.stopped))
        standing = None if self._standing is None else self._guards.response(self._standing)
        if standing in (Response.HOLD, Response.BRAKE):
            return self._pass(self._still(standing, self._standing))
        planned = plan.action(moment.tick, overtime=standing is Response.LAST_SAFE)
        if planned is None and self._standing is not None:
            return self._pass(self._still(Response.LAST_SAFE, self._standing))
        fault = self._objection(moment, planned)
        if fault is None:
            return self._pass(self._unobjected(planned, plan, moment.tick, standing))
        self.faults[fault] += 1
        return self._pass(self._respond(fault, moment, planned, plan))

    def _fault_of(self, answer: InferenceResult) -> Fault | None:
        if answer.error is not None or answer.actions is None or answer.actions.shape[1:] != (self._meaning.dim,):
            return Fault.FAILURE
        return None if np.isfinite(answer.actions).all() else Fault.NON_FINITE

    def _objection(self, moment: TickContext, planned: BufferedAction | None) -> Fault | None:
        guards = self._guards
        if planned is None:
            overdue = guards.deadline_s is not None and (moment.waiting_s or 0.0) > guards.deadline_s
            return None if moment.pausing and not overdue else Fault.MISSED
        if not np.isfinite(planned.action).all():
            return Fault.NON_FINITE
        if not self._limits.hold(planned.action):
            return Fault.OUT_OF_RANGE
        if guards.max_age_s is not None and moment.now_s - planned.chunk.job.observed_s > guards.max_age_s + 1e-9:
            return Fault.STALE
        return Fault.LATE if moment.late_s > self._late_s else None

    def _unobjected(
        self, planned: BufferedAction | None, plan: ActionBuffer, tick: int, standing: Response | None
    ) -> SentAction:
        if planned is None:
            return SentAction(self._meaning.slowed(self._last, 0.0), "start" if plan.empty else "pause")
        action = self._limits.clip(planned.action)
        if standing is Response.LAST_SAFE:
            return SentAction(action, "guard", planned.chunk, self._standing, standing)
        return SentAction(action, "planned" if tick < planned.chunk.play_end else "rest", planned.chunk)

    def _respond(
        self, fault: Fault, moment: TickContext, planned: BufferedAction | None, plan: ActionBuffer
    ) -> SentAction:
        response = self._guards.response(fault)
        if response is Response.STOP:
            self.stopped = fault
        if planned is not None and response in (Response.SEND, Response.CLIP):
            source = "planned" if moment.tick < planned.chunk.play_end else "rest"
            return SentAction(self._limits.clip(planned.action), source, planned.chunk, fault, response)
        if response is Response.LAST_SAFE:
            for older in plan.older(moment.tick):
                if np.isfinite(older.action).all() and self._limits.hold(older.action):
                    return SentAction(self._limits.clip(older.action), "guard", older.chunk, fault, response)
        return self._still(response, fault)

    def _still(self, response: Response, fault: Fault | None) -> SentAction:
        if response is not Response.BRAKE:
            return SentAction(self._meaning.slowed(self._last, 0.0), "guard", None, fault, response)
        if self._brake_from is None:
            self._brake_from, self._braked = self._last, 0
        self._braked += 1
        remaining = max(1.0 - self._braked / self._guards.brake_ticks, 0.0)
        return SentAction(self._meaning.slowed(self._brake_from, remaining), "guard", None, fault, response)

    def _pass(self, sent: SentAction) -> SentAction:
        """The last check, which everything passes, standstill included."""
        action = sent.action
        if action.shape != (self._meaning.dim,) or not np.isfinite(action).all() or not self._limits.hold(action):
            raise UnsafeAction(f"{action} came to the end of the gate ({sent.source}, {sent.fault}, {sent.response})")
        if sent.response is not Response.BRAKE:
            self._brake_from = None
        self._last = action
        return sent
