"""The filter between action chunks and the robot: every action that is sent has been checked here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from specpolicy.control.action_buffer import ActionBuffer, BufferedAction, Chunk
from specpolicy.control.action_space import Action, ActionLimits, ActionSpec
from specpolicy.control.command_limiter import CommandLimiter, MotionState
from specpolicy.control.guards import Fault, Guards, Response
from specpolicy.control.inference import InferenceResult
from specpolicy.control.trace import InferenceRecord


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
        commands_per_action: commands that are sent from one tick to the next.
        tracked: commands of the policy's actions that went through limits of motion.
        limited: how many of these the limits changed.
    """

    faults: Counter[str]
    stopped: Fault | None
    reason: str | None
    commands_per_action: int
    tracked: int
    limited: int

    def admit(self, record: InferenceRecord, result: InferenceResult, buffer: ActionBuffer, tick: int) -> Chunk | None:
        """Put a chunk into the buffer, or refuse it and return None."""
        ...

    def note_draft(self, record: InferenceRecord, result: InferenceResult) -> bool:
        """Take note of a draft that has ended; False if it failed."""
        ...

    def send(self, context: TickContext, buffer: ActionBuffer) -> SentAction:
        """Return the action to send now: the first command of a tick."""
        ...

    def follow(self, number: int) -> Action:
        """Return a later command of the tick, ``number`` from 1 to ``commands_per_action − 1``."""
        ...

    def observe(self, observation: Any) -> None:
        """Take in what is observed after a command."""
        ...

    @property
    def at_rest(self) -> bool:
        """Whether the last command moved nothing, as far as limits of motion know."""
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
        motion: divides each action into commands and limits these; None sends one for each, without such limits.

    Attributes:
        faults, stopped, reason, commands_per_action, tracked, limited: see :class:`ActionFilter`.
    """

    def __init__(
        self, guards: Guards, spec: ActionSpec, limits: ActionLimits, initial: Action, rate_hz: float,
        motion: CommandLimiter | None = None,
    ) -> None:  # fmt: skip
        self._guards, self._spec, self._limits, self._motion = guards, spec, limits, motion
        self.commands_per_action = 1 if motion is None else motion.commands_per_action
        self.tracked = self.limited = 0
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
        """Return the action to send now: the first command of a tick."""
        sent = self._decide(context, buffer)
        return self._exit(sent, None if sent.chunk is None else buffer.action(context.tick + 1))

    def follow(self, number: int) -> Action:
        """Return a later command of the tick, shape ``(dim,)``; numbers whose time has gone by may be skipped."""
        assert self._motion is not None
        command = self._limited(self._motion, number)
        braking = None if self._brake_from is None else Response.BRAKE
        return self._checked(SentAction(command, "follow", response=braking)).action

    def observe(self, observation: Any) -> None:
        """Take in what is observed after a command; the workspace is about it."""
        if self._motion is not None:
            self._motion.observe(observation)

    @property
    def at_rest(self) -> bool:
        """Whether the last command moved nothing; without limits of motion every standstill is one at once."""
        return self._motion is None or self._motion.at_rest

    @property
    def standstill(self) -> Action:
        """Standstill as of the last command, shape ``(dim,)``: what a watchdog sends when no other command comes."""
        return self._limits.clip(self._spec.slow_down(self._last, 0.0))

    def safe_action(self) -> Action:
        """Return the next command towards standstill, shape ``(dim,)``; always within the limits."""
        return self._exit(self._still(Response.STOP, None), None).action

    def _decide(self, context: TickContext, buffer: ActionBuffer) -> SentAction:
        if self.stopped is not None:
            return self._still(Response.STOP, self.stopped)
        if context.problem is not None:
            self.faults[Fault.SENSOR] += 1
            self.reason = context.problem
            if self._guards.sensor is not Response.SEND:
                return self._respond(Fault.SENSOR, context, None, buffer)
        standing = None if self._standing is None else self._guards.response(self._standing)
        if standing in (Response.HOLD, Response.BRAKE):
            return self._still(standing, self._standing)
        planned = buffer.action(context.tick, overtime=standing is Response.LAST_SAFE)
        if planned is None and self._standing is not None:
            return self._still(Response.LAST_SAFE, self._standing)
        fault = self._objection(context, planned)
        if fault is None:
            return self._unobjected(planned, buffer, context.tick, standing)
        self.faults[fault] += 1
        return self._respond(fault, context, planned, buffer)

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

    def _exit(self, sent: SentAction, following: BufferedAction | None) -> SentAction:
        """The one way out: through the limits of motion, then through the last check."""
        if self._motion is None:
            return self._checked(sent)
        ahead = None
        if following is not None and following.action.shape == (self._spec.dim,):
            ahead = self._limits.clip(following.action) if self._limits.representable(following.action) else None
        state = MotionState.STILL if sent.chunk is None else MotionState.TRACK
        self._motion.aim(sent.action, ahead, state)
        return self._checked(replace(sent, action=self._limited(self._motion, 0)))

    def _limited(self, motion: CommandLimiter, number: int) -> Action:
        command, limited = motion.command(number)
        self.tracked += motion.tracks
        self.limited += limited
        return command

    def _checked(self, sent: SentAction) -> SentAction:
        """The last check, of everything that is sent, standstill included, in the type in which it is sent."""
        action = sent.action
        fits = action.shape == (self._spec.dim,) and self._limits.representable(action)
        if not fits or not self._limits.contain(action):
            raise UnsafeAction(f"{action} reached the end of the filter ({sent.source}, {sent.fault}, {sent.response})")
        if self._motion is not None:
            if broken := self._motion.beyond(action):
                raise UnsafeAction(f"{action} is beyond {broken} at the end of the filter ({sent.source})")
            self._motion.sent(action)
        if sent.response is not Response.BRAKE:
            self._brake_from = None
        self._last = action if self._motion is None else self._motion.last
        return sent


class NoFilter:
    """Sends a policy's actions as they are, for evaluations in simulation; a policy that fails ends the episode.

    Args:
        n_action_steps: actions of each chunk that are played.

    Attributes:
        faults, stopped, reason, tracked, limited: see :class:`ActionFilter`; here always empty.
    """

    commands_per_action = 1
    tracked = limited = 0
    at_rest = True

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

    def follow(self, number: int) -> Action:
        """Raise ``NotImplementedError``: without limits of motion an action is one command."""
        raise NotImplementedError("without limits of motion an action is one command")

    def observe(self, observation: Any) -> None:
        """Nothing here depends on it."""


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
