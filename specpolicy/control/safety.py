"""The filter between action chunks and the robot: every action that is sent has been checked here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from specpolicy.control.action_buffer import ActionBuffer, BufferedAction, Chunk
from specpolicy.control.action_space import Action, ActionLimits, ActionSpec
from specpolicy.control.inference import InferenceResult
from specpolicy.control.trace import InferenceRecord


class Fault(StrEnum):
    """What a guard objects to."""

    NON_FINITE = "non_finite"
    """NaN, infinity, or a number that the action's type cannot hold: in a chunk, which is then refused as a whole, or
    in the aggregate of several."""

    OUT_OF_RANGE = "out_of_range"
    """An action outside the environment's limits."""

    FAILURE = "failure"
    """A chunk could not be computed: the policy raised an exception or gave no usable actions, or the observation is
    none that it can be asked about."""

    STALE = "stale"
    """An action from an observation that is too old."""

    MISSED = "missed"
    """A tick for which there is no action, because the next chunk is late."""

    LATE = "late"
    """A tick that is sent too long after it was due."""

    SENSOR = "sensor"
    """The environment says, in ``info["problem"]``, why its observation must not be used: a sensor is lost or stale."""


class Response(StrEnum):
    """What is done about a fault."""

    SEND = "send"
    """The action is sent all the same, and counted."""

    CLIP = "clip"
    """The nearest action within the limits."""

    HOLD = "hold"
    """Standstill at once: deltas zero, absolute entries repeated."""

    BRAKE = "brake"
    """Deltas go down to zero over some ticks, absolute entries are repeated."""

    LAST_SAFE = "last_safe"
    """The last chunk without a fault is played on to its end, then the robot holds."""

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
    Fault.SENSOR: _STILL | {Response.SEND},
}
"""Responses that make sense for each fault; nothing that has not been checked can be sent."""


@dataclass(frozen=True)
class Guards:
    """The response to each fault, and the thresholds.

    Attributes:
        non_finite, out_of_range, failure, stale, missed, late, sensor: a :class:`Response` each, or its name.
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
    sensor: Response = Response.HOLD
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
            if field.name.endswith("_s") and value is not None and not 0 < value < float("inf"):
                raise ValueError(f"guards: {field.name}={value}; expected a positive number of seconds, or null")
        for name in ("brake_ticks", "give_up_after"):
            value = getattr(self, name)
            if value is None and name == "give_up_after":
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"guards: {name}={value!r}; expected a whole number, at least 1")
        if not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"guards: tolerance={self.tolerance}; expected a finite number, not negative")

    def response(self, fault: Fault) -> Response:
        """Return the response to ``fault``."""
        response: Response = getattr(self, fault.value)
        return response


class UnsafeAction(RuntimeError):
    """An action that no guard may let through reached the end of the filter: a bug of this library."""


class InferenceFailed(RuntimeError):
    """The policy gave no usable chunk, and no guards are there to respond."""


@dataclass(frozen=True)
class TickContext:
    """A tick, as the filter needs to know it.

    Attributes:
        tick: its number.
        now_s: the time.
        late_s: how long ago it was due.
        pausing: the executor holds at this tick by design, waiting for a chunk that was requested ``waiting_s`` ago.
        waiting_s: None if no chunk is being computed.
        problem: why the present observation must not be used; None if it may.
    """

    tick: int
    now_s: float
    late_s: float
    pausing: bool
    waiting_s: float | None
    problem: str | None = None


@dataclass(frozen=True)
class SentAction:
    """An action to send, and why it is this one; see :class:`specpolicy.control.StepRecord`."""

    action: Action
    source: str
    chunk: Chunk | None = None
    fault: Fault | None = None
    response: Response | None = None


class ActionFilter(Protocol):
    """Decides which chunks are played and which action is sent.

    Attributes:
        faults: how often each fault occurred.
        stopped: the fault for which the episode must end; None if it need not.
        reason: what the latest fault of a chunk was, in words.
    """

    faults: Counter[str]
    stopped: Fault | None
    reason: str | None

    def admit(self, record: InferenceRecord, result: InferenceResult, buffer: ActionBuffer, tick: int) -> Chunk | None:
        """Put a chunk into the buffer, or refuse it and return None."""
        ...

    def note_draft(self, record: InferenceRecord, result: InferenceResult) -> bool:
        """Take note of a draft that has ended; False if it failed."""
        ...

    def send(self, context: TickContext, buffer: ActionBuffer) -> SentAction:
        """Return the action to send now."""
        ...


class SafetyFilter:
    """Checks chunks when they arrive and actions before they are sent, for one episode.

    Args:
        guards: thresholds and responses.
        spec: of actions.
        limits: of actions.
        initial: the action of a robot that has not been sent anything yet, shape ``(dim,)``; see
            :meth:`ActionSpec.initial_action`.
        rate_hz: ticks a second.

    Attributes:
        faults, stopped, reason: see :class:`ActionFilter`.
    """

    def __init__(self, guards: Guards, spec: ActionSpec, limits: ActionLimits, initial: Action, rate_hz: float) -> None:
        self._guards, self._spec, self._limits = guards, spec, limits
        self._late_s = guards.late_s if guards.late_s is not None else 0.5 / rate_hz
        self._last = limits.clip(initial)
        self._brake_from: Action | None = None
        self._braked = 0
        self._standing: Fault | None = None
        self._refused = 0
        self.faults: Counter[str] = Counter()
        self.stopped: Fault | None = None
        self.reason: str | None = None

    def admit(self, record: InferenceRecord, result: InferenceResult, buffer: ActionBuffer, tick: int) -> Chunk | None:
        """Put a chunk into the buffer, or refuse it and return None; a refusal stands until the next chunk is admitted.

        Args:
            record: of the inference; told about errors and the handover.
            result: what the policy gave.
            buffer: takes the chunk.
            tick: the present one.

        Returns:
            The chunk; None if it was refused, or if all of its actions are for ticks that have passed.
        """
        problem = chunk_problem(result, self._spec.dim)
        fault = None
        if problem is not None:
            fault = Fault.FAILURE
        elif not self._limits.representable(np.asarray(result.actions)):
            fault, problem = Fault.NON_FINITE, f"the chunk has actions that are not finite as {self._limits.dtype}"
        if fault is None:
            assert result.actions is not None
            self._refused = 0
            chunk = buffer.add(record, result.actions, tick)
            if chunk is None:
                self.faults[Fault.STALE] += 1  # every one of its actions was for a tick that has passed
            else:
                record.handover, self._standing = tick, None
            return chunk
        record.error = self.reason = problem
        self.faults[fault] += 1
        self._standing = fault
        self._refused += 1
        if self._guards.response(fault) is Response.STOP or self._refused == self._guards.give_up_after:
            self.stopped = fault
        return None

    def note_draft(self, record: InferenceRecord, result: InferenceResult) -> bool:
        """Take note of a draft that has ended; False if it failed. Nothing was to be played from it."""
        if result.error is not None:
            record.error = self.reason = result.error
            self.faults[Fault.FAILURE] += 1
        return result.error is None

    def send(self, context: TickContext, buffer: ActionBuffer) -> SentAction:
        """Return the action to send now."""
        if self.stopped is not None:
            return self._checked(self._still(Response.STOP, self.stopped))
        if context.problem is not None:
            self.faults[Fault.SENSOR] += 1
            self.reason = context.problem
            if self._guards.sensor is not Response.SEND:
                return self._checked(self._respond(Fault.SENSOR, context, None, buffer))
        standing = None if self._standing is None else self._guards.response(self._standing)
        if standing in (Response.HOLD, Response.BRAKE):
            return self._checked(self._still(standing, self._standing))
        planned = buffer.action(context.tick, overtime=standing is Response.LAST_SAFE)
        if planned is None and self._standing is not None:
            return self._checked(self._still(Response.LAST_SAFE, self._standing))
        fault = self._objection(context, planned)
        if fault is None:
            return self._checked(self._unobjected(planned, buffer, context.tick, standing))
        self.faults[fault] += 1
        return self._checked(self._respond(fault, context, planned, buffer))

    def safe_action(self) -> Action:
        """Return the action of standstill from here on, shape ``(dim,)``; always within the limits."""
        return self._checked(self._still(Response.STOP, None)).action

    def _objection(self, context: TickContext, planned: BufferedAction | None) -> Fault | None:
        guards = self._guards
        if planned is None:
            overdue = guards.deadline_s is not None and (context.waiting_s or 0.0) > guards.deadline_s
            return None if context.pausing and not overdue else Fault.MISSED
        if planned.action.shape != (self._spec.dim,) or not self._limits.representable(planned.action):
            return Fault.NON_FINITE
        if not self._limits.contain(planned.action):
            return Fault.OUT_OF_RANGE
        if (
            guards.max_age_s is not None
            and context.now_s - planned.chunk.inference.observed_s > guards.max_age_s + 1e-9
        ):
            return Fault.STALE
        return Fault.LATE if context.late_s > self._late_s else None

    def _unobjected(
        self, planned: BufferedAction | None, buffer: ActionBuffer, tick: int, standing: Response | None
    ) -> SentAction:
        if planned is None:
            return SentAction(self._spec.slow_down(self._last, 0.0), "start" if buffer.empty else "pause")
        action = self._limits.clip(planned.action)
        if standing is Response.LAST_SAFE:
            return SentAction(action, "guard", planned.chunk, self._standing, standing)
        return SentAction(action, "planned" if tick < planned.chunk.play_end else "rest", planned.chunk)

    def _respond(
        self, fault: Fault, context: TickContext, planned: BufferedAction | None, buffer: ActionBuffer
    ) -> SentAction:
        response = self._guards.response(fault)
        if response is Response.STOP:
            self.stopped = fault
        if planned is not None and response in (Response.SEND, Response.CLIP):
            source = "planned" if context.tick < planned.chunk.play_end else "rest"
            return SentAction(self._limits.clip(planned.action), source, planned.chunk, fault, response)
        if response is Response.LAST_SAFE:
            for older in buffer.older(context.tick):
                if self._limits.representable(older.action) and self._limits.contain(older.action):
                    return SentAction(self._limits.clip(older.action), "guard", older.chunk, fault, response)
        return self._still(response, fault)

    def _still(self, response: Response, fault: Fault | None) -> SentAction:
        if response is not Response.BRAKE:
            return SentAction(self._spec.slow_down(self._last, 0.0), "guard", None, fault, response)
        if self._brake_from is None:
            self._brake_from, self._braked = self._last, 0
        self._braked += 1
        remaining = max(1.0 - self._braked / self._guards.brake_ticks, 0.0)
        return SentAction(self._spec.slow_down(self._brake_from, remaining), "guard", None, fault, response)

    def _checked(self, sent: SentAction) -> SentAction:
        """The last check, of everything that is sent, standstill included, in the type in which it is sent."""
        action = sent.action
        fits = action.shape == (self._spec.dim,) and self._limits.representable(action)
        if not fits or not self._limits.contain(action):
            raise UnsafeAction(f"{action} reached the end of the filter ({sent.source}, {sent.fault}, {sent.response})")
        if sent.response is not Response.BRAKE:
            self._brake_from = None
        self._last = action
        return sent


class NoFilter:
    """Sends a policy's actions as they are, for evaluations in simulation; a policy that fails ends the episode.

    Args:
        n_action_steps: actions of each chunk that are played.

    Attributes:
        faults, stopped, reason: see :class:`ActionFilter`; here always empty.
    """

    def __init__(self, n_action_steps: int) -> None:
        self._n_action_steps = n_action_steps
        self.faults: Counter[str] = Counter()
        self.stopped: Fault | None = None
        self.reason: str | None = None

    def admit(self, record: InferenceRecord, result: InferenceResult, buffer: ActionBuffer, tick: int) -> Chunk | None:
        """Put a chunk into the buffer. Raises :class:`InferenceFailed` if there is none, or if it is not finite."""
        problem = chunk_problem(result)
        if problem is None and not np.isfinite(np.asarray(result.actions)[: self._n_action_steps]).all():
            problem = "the policy gave NaN or infinite actions"
        if problem is not None:
            record.error = problem
            raise InferenceFailed(problem)
        assert result.actions is not None
        record.handover = tick
        return buffer.add(record, result.actions, tick)

    def note_draft(self, record: InferenceRecord, result: InferenceResult) -> bool:
        """Raise :class:`InferenceFailed` if a draft failed."""
        if result.error is not None:
            record.error = result.error
            raise InferenceFailed(result.error)
        return True

    def send(self, context: TickContext, buffer: ActionBuffer) -> SentAction:
        """Return the planned action."""
        planned = buffer.action(context.tick)
        if planned is None:
            raise InferenceFailed("there is no action to play; without guards the world must wait for the policy")
        return SentAction(planned.action, "planned", planned.chunk)


def chunk_problem(result: InferenceResult, action_dim: int | None = None) -> str | None:
    """Say what makes a policy's result unusable as a chunk.

    Args:
        result: what the policy gave.
        action_dim: numbers of an action; None for any.

    Returns:
        The reason; None if actions of shape ``(n >= 1, action_dim)`` can be read from it.
    """
    if result.error is not None:
        return result.error
    actions: Any = result.actions
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
        kind = f"an array of {actions.dtype}" if isinstance(actions, np.ndarray) else type(actions).__name__
        return f"the policy gave {kind} as actions; expected a numeric numpy array of shape (steps, action_dim)"
    wanted = "action_dim" if action_dim is None else str(action_dim)
    if actions.ndim != 2 or len(actions) < 1 or (action_dim is not None and actions.shape[1] != action_dim):
        return f"the policy's actions have shape {actions.shape}; the environment takes (steps >= 1, {wanted})"
    return None
