"""The gate that every action passes on its way to the robot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .account import Job
from .actions import Action, ActionMeaning, Limits
from .guards import Fault, Guards, Response
from .plan import Chunk, Plan, Planned
from .questions import Answer


class UnsafeAction(RuntimeError):
    """An action that no guard may let through came to the gate's end: a fault of this library."""


@dataclass(frozen=True)
class Moment:
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
class Sent:
    """An action on its way, and why it is this one; see :class:`specpolicy.control.TickRow`."""

    action: Action
    source: str
    chunk: Chunk | None = None
    fault: Fault | None = None
    response: Response | None = None


class Gate:
    """Checks chunks when they come and actions before they go, for one episode.

    Args:
        guards: thresholds and responses.
        meaning, limits: of actions.
        first: the action of a robot that has not been told anything yet; see :meth:`ActionMeaning.first`.
        rate_hz: ticks a second.

    Attributes:
        faults: how often each fault occurred.
        stopped: the fault for which the episode must end.
    """

    def __init__(self, guards: Guards, meaning: ActionMeaning, limits: Limits, first: Action, rate_hz: float) -> None:
        self._guards, self._meaning, self._limits = guards, meaning, limits
        self._late_s = guards.late_s if guards.late_s is not None else 0.5 / rate_hz
        self._last = limits.clip(first)
        self._brake_from: Action | None = None
        self._braked = 0
        self._standing: Fault | None = None
        self._refused = 0
        self.faults: Counter[str] = Counter()
        self.stopped: Fault | None = None

    def admit(self, job: Job, answer: Answer, plan: Plan, tick: int) -> Chunk | None:
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

    def note_draft(self, job: Job, answer: Answer) -> bool:
        """Take note of a draft that has ended; False if it failed. Nothing was to be played from it."""
        job.error = answer.error
        if answer.error is not None:
            self.faults[Fault.FAILURE] += 1
        return answer.error is None

    def send(self, moment: Moment, plan: Plan) -> Sent:
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

    def _fault_of(self, answer: Answer) -> Fault | None:
        if answer.error is not None or answer.actions is None or answer.actions.shape[1:] != (self._meaning.dim,):
            return Fault.FAILURE
        return None if np.isfinite(answer.actions).all() else Fault.NON_FINITE

    def _objection(self, moment: Moment, planned: Planned | None) -> Fault | None:
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

    def _unobjected(self, planned: Planned | None, plan: Plan, tick: int, standing: Response | None) -> Sent:
        if planned is None:
            return Sent(self._meaning.slowed(self._last, 0.0), "start" if plan.empty else "pause")
        action = self._limits.clip(planned.action)
        if standing is Response.LAST_SAFE:
            return Sent(action, "guard", planned.chunk, self._standing, standing)
        return Sent(action, "planned" if tick < planned.chunk.play_end else "rest", planned.chunk)

    def _respond(self, fault: Fault, moment: Moment, planned: Planned | None, plan: Plan) -> Sent:
        response = self._guards.response(fault)
        if response is Response.STOP:
            self.stopped = fault
        if planned is not None and response in (Response.SEND, Response.CLIP):
            source = "planned" if moment.tick < planned.chunk.play_end else "rest"
            return Sent(self._limits.clip(planned.action), source, planned.chunk, fault, response)
        if response is Response.LAST_SAFE:
            for older in plan.older(moment.tick):
                if np.isfinite(older.action).all() and self._limits.hold(older.action):
                    return Sent(self._limits.clip(older.action), "guard", older.chunk, fault, response)
        return self._still(response, fault)

    def _still(self, response: Response, fault: Fault | None) -> Sent:
        if response is not Response.BRAKE:
            return Sent(self._meaning.slowed(self._last, 0.0), "guard", None, fault, response)
        if self._brake_from is None:
            self._brake_from, self._braked = self._last, 0
        self._braked += 1
        remaining = max(1.0 - self._braked / self._guards.brake_ticks, 0.0)
        return Sent(self._meaning.slowed(self._brake_from, remaining), "guard", None, fault, response)

    def _pass(self, sent: Sent) -> Sent:
        """The last check, which everything passes, standstill included."""
        action = sent.action
        if action.shape != (self._meaning.dim,) or not np.isfinite(action).all() or not self._limits.hold(action):
            raise UnsafeAction(f"{action} came to the end of the gate ({sent.source}, {sent.fault}, {sent.response})")
        if sent.response is not Response.BRAKE:
            self._brake_from = None
        self._last = action
        return sent
