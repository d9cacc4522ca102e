"""A robot behind topics as a gymnasium environment: what has come last is observed, what is decided is published."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.control.action_space import Action
from specpolicy.control.clocks import Clock
from specpolicy.ros.interface import ActionTopic, RosInterface, SensorTopic
from specpolicy.ros.messages import MakeMessage, MessageError, read_sensor, stamp_of, write_action

Seconds = Callable[[], float]
"""Reads a clock."""


class TopicError(RuntimeError):
    """The topics do not give, or do not take, what the policy needs."""


class TickTime:
    """A clock's time for the loop, which never goes back: ROS time can, when a simulator is reset.

    Args:
        read: seconds.

    Attributes:
        jumps: how often the clock went back.
    """

    def __init__(self, read: Seconds) -> None:
        self._read, self._last, self._offset, self.jumps = read, -math.inf, 0.0, 0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """The time, in seconds from an arbitrary moment; it stands still while the clock goes back."""
        with self._lock:
            now = self._read() + self._offset
            if now < self._last:
                self.jumps += 1
                self._offset += self._last - now
                now = self._last
            self._last = now
            return now

    def sleep(self, seconds: float) -> None:
        """Sleep for so long on this clock, looking at it a thousand times a second."""
        end = self() + seconds
        while self() < end:
            time.sleep(0.001)


@dataclass
class TopicState:
    """What has come from one topic.

    Attributes:
        topic, type: its name and type.
        parts: of the observation that it gives.
        max_age_s: oldest message allowed.
        values: the latest ones.
        arrived_s: when they came; None if nothing has come.
        stamp_s: the message's own time; None if it has none.
        received, rejected: messages that could and could not be used.
        problem: what was wrong with the last one; None if it could be used.
    """

    topic: str
    type: str
    parts: dict[str, SensorTopic]
    max_age_s: float
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    arrived_s: float | None = None
    stamp_s: float | None = None
    received: int = 0
    rejected: int = 0
    problem: str | None = None


class SensorReader:
    """The latest observation of all topics, and why it must not be used; may be asked from any thread.

    Args:
        interface: the topics.
        shapes: of one step of each part of the observation.
        now_s: the clock on which arrivals are timed.
        stamp_now_s: the clock of the stamps, in seconds of its epoch.
        timed: whether old messages, and those of the future, must not be used; not where the world waits for actions.

    Attributes:
        states: of each topic.
    """

    def __init__(
        self,
        interface: RosInterface,
        shapes: Mapping[str, Sequence[int]],
        now_s: Seconds,
        stamp_now_s: Seconds,
        timed: bool = True,
    ) -> None:
        self._timed = timed
        self._interface, self._shapes = interface, {key: tuple(shape) for key, shape in shapes.items()}
        self._now_s, self._stamp_now_s = now_s, stamp_now_s
        self._changed = threading.Condition()
        self.states: dict[str, TopicState] = {}
        for key, sensor in interface.observations.items():
            state = self.states.setdefault(sensor.topic, TopicState(sensor.topic, sensor.type, {}, interface.max_age_s))
            state.parts[key] = sensor
            if sensor.max_age_s is not None:
                state.max_age_s = sensor.max_age_s

    def receive(self, topic: str, message: Any) -> None:
        """Take in a message; one that cannot be used is counted, and is the topic's problem until the next one."""
        state = self.states[topic]
        problem, values = None, {}
        stamp = stamp_of(message)
        try:
            values = {key: read_sensor(each, message, self._shapes[key]) for key, each in state.parts.items()}
        except MessageError as error:
            problem = str(error)
        with self._changed:
            if problem is None and stamp is not None and state.stamp_s is not None and stamp < state.stamp_s:
                back = state.stamp_s - stamp
                problem = f"{topic}: stamps went back by {back:.3f} s; check the sensor's clock"
                if back <= state.max_age_s:  # messages that overtook one another
                    state.rejected += 1
                    return
            if problem is not None:
                state.problem, state.rejected = problem, state.rejected + 1
            else:
                state.values, state.arrived_s, state.stamp_s, state.problem = values, self._now_s(), stamp, None
                state.received += 1
            self._changed.notify_all()

    def forget(self) -> None:
        """Forget all that has come: another episode begins, or time went back."""
        with self._changed:
            for state in self.states.values():
                state.values, state.arrived_s, state.stamp_s, state.problem = {}, None, None, None

    def age_s(self, state: TopicState) -> float | None:
        """Return the age of a topic's latest message by its arrival or its stamp, whichever is more; None without."""
        if state.arrived_s is None:
            return None
        age = self._now_s() - state.arrived_s
        return age if state.stamp_s is None else max(age, self._stamp_now_s() - state.stamp_s)

    def problem_of(self, state: TopicState) -> str | None:
        """Say why a topic's latest message must not be used; None if it may."""
        with self._changed:
            if state.problem is not None:
                return state.problem
            age, stamp = self.age_s(state), state.stamp_s
        if age is None:
            return f"{state.topic}: no message has come yet"
        if not self._timed:
            return None
        if age > state.max_age_s:
            return f"{state.topic}: the last message is {age:.2f} s old, and {state.max_age_s:g} s are allowed"
        if stamp is not None and (ahead := stamp - self._stamp_now_s()) > self._interface.max_ahead_s:
            return f"{state.topic}: a stamp lies {ahead:.3f} s in the future; synchronize the clocks"
        return None

    def problem(self) -> str | None:
        """Say why the present observation must not be used; None if it may."""
        return next((text for state in self.states.values() if (text := self.problem_of(state)) is not None), None)

    def values(self) -> dict[str, NDArray[Any]]:
        """Return the latest values of all parts that have come."""
        with self._changed:
            latest = {key: value for state in self.states.values() for key, value in state.values.items()}
            return {key: latest[key] for key in self._interface.observations if key in latest}

    def counts(self) -> dict[str, int]:
        """Return how many messages each topic has given, usable or not."""
        with self._changed:
            return {topic: state.received + state.rejected for topic, state in self.states.items()}

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``condition`` holds, asking it after every message; False if it does not within ``timeout_s``."""
        end = time.monotonic() + timeout_s
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                return False
            with self._changed:
                self._changed.wait(min(left, 0.02))
        return True


class TopicEnv(gymnasium.Env[Any, Any]):
    """A robot behind topics.

    ``step`` publishes a command and waits until the next one is due, so that the loop sees what has come by then.
    In lockstep it waits instead for a message of each topic that comes after the action, ``start_timeout_s`` at
    most: for simulators that step when they are told to. An observation that must not be used has its reason in
    ``info["problem"]``; after a gap that goes on until the policy's whole history is new. An action that no message can
    carry repeats the last one that could.

    Args:
        interface: the topics.
        reader: of the sensors.
        publish: sends a message on a topic.
        make: makes messages.
        clock: of the loop.
        stamp_now_s: time for the stamps of actions.
        n_obs_steps: observation steps that the policy sees.
        lockstep: see above.
        commands_per_action: commands between two ticks, where limits of motion ask for more than one.
        graph_problem: says what is wrong with who publishes and subscribes; raises :class:`TopicError` where waiting
            would not help.
        poll_s: how often a clock other than the machine's is looked at; None for the machine's.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - gymnasium's own convention

    def __init__(
        self,
        interface: RosInterface,
        reader: SensorReader,
        publish: Callable[[ActionTopic, Any], None],
        make: MakeMessage,
        clock: Clock,
        stamp_now_s: Seconds,
        n_obs_steps: int,
        lockstep: bool = False,
        commands_per_action: int = 1,
        graph_problem: Callable[[], str | None] = lambda: None,
        poll_s: float | None = None,
    ) -> None:
        self.action_space = interface.action_space
        self._interface, self._reader, self._publish, self._make = interface, reader, publish, make
        self._clock, self._stamp_now_s, self._n_obs_steps = clock, stamp_now_s, n_obs_steps
        self._lockstep, self._graph_problem, self._poll_s = lockstep, graph_problem, poll_s
        self._commands_per_action = commands_per_action
        self._stopping = threading.Event()
        self._recovering, self._left = 0, False
        self._sent: list[Any] = []

    def stop(self) -> None:
        """End the episode at once; the loop sends the safe action. May be called from any thread."""
        self._stopping.set()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Wait for the first message of each topic.

        Raises:
            TopicError: a message that the policy cannot use, or none within the interface's ``start_timeout_s``.
            SystemExit: :meth:`stop` was called.
        """
        super().reset(seed=seed)
        self._recovering, self._sent = 0, []
        problem: str | None = None

        def ready() -> bool:
            nonlocal problem
            if self._stopping.is_set():
                return True
            problem = self._graph_problem() or self._reader.problem()
            refused = [state.problem for state in self._reader.states.values() if state.problem is not None]
            if refused:
                raise TopicError(refused[0])
            return problem is None

        if not self._reader.wait_for(ready, self._interface.start_timeout_s):
            raise TopicError(f"{problem}; waited {self._interface.start_timeout_s:g} s")
        self._leave_if_stopped()
        return self._reader.values(), {}

    def step(self, action: NDArray[np.float64]) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """Publish an action, and observe at the next tick.

        Raises:
            SystemExit: :meth:`stop` has been called before this tick was over; one more action is taken, the safe one.
        """
        if not self._left:
            self._leave_if_stopped()
        before, clock = self._reader.counts(), self._clock
        rate_hz = clock.rate_hz * self._commands_per_action
        due = clock.due(0) + (math.floor((clock.now() - clock.due(0)) * rate_hz + 1e-6) + 1) / rate_hz + 1e-6
        problem = self._send(np.asarray(action, dtype=np.float64))
        if self._left:
            return self._reader.values(), 0.0, False, True, {}
        if self._lockstep:
            problem = self._next_messages(before) or problem
        else:
            self._wait_until(due)
        self._leave_if_stopped()
        problem = self._observation_problem() or problem
        return self._reader.values(), 0.0, False, False, {} if problem is None else {"problem": problem}

    def _send(self, action: Action) -> str | None:
        now, problem = self._stamp_now_s(), None
        try:
            self._sent = [
                write_action(topic, action, now, 1.0 / (self._clock.rate_hz * self._commands_per_action), self._make)
                for topic in self._interface.actions
            ]
        except MessageError as error:
            problem = str(error)
        for topic, message in zip(self._interface.actions, self._sent, strict=bool(self._sent)):
            self._publish(topic, message)
        return problem

    def _wait_until(self, due: float) -> None:
        while (left := due - self._clock.now()) > 0:
            if self._stopping.wait(left if self._poll_s is None else min(left, self._poll_s)):
                return

    def _next_messages(self, before: Mapping[str, int]) -> str | None:
        """Wait for a message of each topic; what did not come in time is the problem."""
        timeout = self._interface.start_timeout_s

        def all_new() -> bool:
            counts = self._reader.counts()
            return self._stopping.is_set() or all(counts[topic] > count for topic, count in before.items())

        if self._reader.wait_for(all_new, timeout):
            return None
        silent = [topic for topic, count in self._reader.counts().items() if count == before[topic]]
        return f"{', '.join(silent)}: no message came in {timeout:g} s after an action"

    def _observation_problem(self) -> str | None:
        problem = self._reader.problem()
        if problem is not None:
            self._recovering = self._n_obs_steps - 1
            return problem
        if self._recovering > 0:
            self._recovering -= 1
            return f"after a gap: {self._recovering + 1} more observations until the policy's history is new"
        return None

    def _leave_if_stopped(self) -> None:
        if self._stopping.is_set():
            self._left = True
            raise SystemExit(0)
