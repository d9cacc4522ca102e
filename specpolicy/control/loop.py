"""The control loop: observe, infer, decide, check, send; at a fixed rate."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import gymnasium
import numpy as np

from specpolicy.control.action_buffer import ActionBuffer
from specpolicy.control.action_space import Action, ActionLimits, ActionSpec
from specpolicy.control.clocks import Clock
from specpolicy.control.executors import Executor, IdleBehavior
from specpolicy.control.inference import InferenceKind, InferenceRequest, InferenceResult, LoopPolicy, checked_seed
from specpolicy.control.inference_scheduler import InferenceScheduler, InferenceTask, ObservationRecord
from specpolicy.control.safety import ActionFilter, Guards, NoFilter, SafetyFilter, SentAction, TickContext
from specpolicy.control.trace import EpisodeTrace, InferenceRecord, StepRecord
from specpolicy.control.viewers import View
from specpolicy.policies.observations import ObservationHistory
from specpolicy.utils.checks import shown
from specpolicy.utils.errors import format_exception

ControlCoroutine = Generator[InferenceRequest, "Future[InferenceResult]", EpisodeTrace]
"""Yields what is to be inferred, is sent the result's future, and returns the trace."""


@dataclass(frozen=True)
class ControlSetup:
    """What is to be controlled, and how.

    Attributes:
        env: any environment with a Box of actions; ``info["success"]`` is read where there is one, and
            ``info["problem"]``: why the observation must not be used, e.g. since a sensor is lost.
        executor: what to do about the time that the policy takes.
        clock: what time that is.
        n_obs_steps: observation steps that the policy sees.
        action_spec: of the environment's actions; needed with guards.
        guards: the response to each fault. None sends actions as they are and lets a failing policy end the episode
            with an exception, as evaluations in simulation do; only for executors under which the world waits.
        views: are shown every tick.
        max_ticks: end an episode after so many ticks, even if the environment would go on.
        success_required: raise ``KeyError`` if the environment's info has no ``"success"``.

    Raises:
        ValueError: ``max_ticks`` or ``n_obs_steps`` is no positive integer, guards lack an action description or an
            executor its guards, or the action description does not fit the environment.
    """

    env: gymnasium.Env[Any, Any]
    executor: Executor
    clock: Clock
    n_obs_steps: int
    action_spec: ActionSpec | None = None
    guards: Guards | None = None
    views: Sequence[View] = ()
    max_ticks: int | None = None
    success_required: bool = False

    def __post_init__(self) -> None:
        check_count("max_ticks", self.max_ticks)
        check_count("n_obs_steps", self.n_obs_steps)
        if self.guards is None:
            if not self.executor.config.world_waits:
                raise ValueError(f"{self.executor} moves while the policy computes, which takes guards")
        elif self.action_spec is None:
            raise ValueError(
                "guards need an action_spec: which entries of an action are deltas, and which are absolute"
            )
        else:
            ActionLimits.from_space(self.env.action_space, self.action_spec)

    def make_filter(self, history: ObservationHistory) -> ActionFilter:
        """Make what decides about actions in one episode.

        Args:
            history: with the first observation.

        Returns:
            A :class:`SafetyFilter`, or a :class:`NoFilter` without guards.

        Raises:
            ValueError: the first observation lacks what ``action_spec.initial_from`` names.
        """
        if self.guards is None or self.action_spec is None:
            return NoFilter(self.executor.config.n_action_steps)
        limits = ActionLimits.from_space(self.env.action_space, self.action_spec, self.guards.tolerance)
        initial = self.action_spec.initial_action(history.latest)
        return SafetyFilter(self.guards, self.action_spec, limits, initial, self.clock.rate_hz)


class ControlLoop:
    """Runs a policy on an environment at a fixed rate.

    Ctrl-C and SIGTERM send the safe action (standstill) and close the environment, also while an inference runs.

    Args:
        env: the environment; nothing but gymnasium's interface is used.
        policy: answers the loop's requests; see :class:`PolicyRunner`.
        executor: what to do about the time that the policy takes.
        clock: what time that is.
        guards: what to do when something goes wrong; the defaults if None.
        action_spec: which entries of an action are deltas and which are absolute; all deltas by default.
        views: are shown every tick.
        max_ticks: end an episode after so many ticks, even if the environment would go on.

    Raises:
        ValueError: the executor pre-drafts and the policy cannot; or see :class:`ControlSetup`.

    Example:
        >>> loop = ControlLoop(env, PolicyRunner(policy, sampler), Asynchronous(), RealTimeClock(20))  # doctest: +SKIP
        >>> trace = loop.run(seed=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        policy: LoopPolicy,
        executor: Executor,
        clock: Clock,
        guards: Guards | None = None,
        action_spec: ActionSpec | None = None,
        views: Sequence[View] = (),
        max_ticks: int | None = None,
    ) -> None:
        spec = action_spec or ActionSpec(range(int(np.prod(env.action_space.shape or ()))))
        setup = ControlSetup(env, executor, clock, policy.n_obs_steps, spec, guards or Guards(), views, max_ticks)
        if executor.config.predraft is not None and not policy.predrafts:
            raise ValueError(
                "the executor pre-drafts, but this policy or its sampler has no predraft(): take a speculative "
                "sampler, or another executor"
            )
        self._setup, self._policy = setup, policy

    def run(self, seed: int, repeat: int = 0) -> EpisodeTrace:
        """Play one episode.

        Args:
            seed: of the environment's reset, a non-negative integer.
            repeat: tells episodes from one initial state apart; seed and repeat fix all random streams.

        Returns:
            What happened, tick by tick.
        """
        return run_episode(self._setup, self._policy, seed, repeat)


def run_episode(setup: ControlSetup, policy: LoopPolicy, seed: int, repeat: int = 0) -> EpisodeTrace:
    """Play one episode with a policy in this process.

    Args:
        setup: what is to be controlled, and how.
        policy: answers the requests.
        seed: of the environment's reset, a non-negative integer.
        repeat: tells episodes from one initial state apart.

    Returns:
        What happened, tick by tick.
    """
    seed, repeat = checked_seed(seed), checked_seed(repeat, "repeat")
    policy.reset(seed, repeat)
    steps, interrupted = control_steps(setup, seed, repeat), False
    with _sigterm_raises():
        try:
            request = next(steps)
            while True:
                request = steps.send(setup.clock.launch(partial(policy.infer, request)))
        except StopIteration as end:
            trace: EpisodeTrace = end.value
            return trace
        except (KeyboardInterrupt, SystemExit) as error:
            interrupted = True
            with suppress(BaseException):
                steps.throw(error)  # sends the safe action, unless that has been done
            raise
        finally:
            setup.clock.finish(wait=not interrupted)


def control_steps(setup: ControlSetup, seed: int, repeat: int = 0) -> ControlCoroutine:
    """Play one episode as a coroutine, so that many episodes can share batches of inference.

    Args:
        setup: what is to be controlled, and how.
        seed: of the environment's reset.
        repeat: tells episodes from one initial state apart.

    Yields:
        What is to be inferred; the result's future is to be sent.

    Returns:
        What happened, tick by tick.
    """
    env, clock, config = setup.env, setup.clock, setup.executor.config
    observation = _read_reset(env.reset(seed=seed))
    history = ObservationHistory(setup.n_obs_steps, observation)
    actions = setup.make_filter(history)
    trace = EpisodeTrace(seed, repeat, clock.rate_hz, config.n_action_steps, faults=actions.faults)
    buffer, scheduler = config.make_buffer(), InferenceScheduler(config)
    for view in setup.views:
        view.begin(trace, env)
    clock.start(seed, repeat)
    tick, over, problem, sensor = 0, False, None, None
    try:
        while not over:
            observed = _observed(tick, clock.now(), history, problem)
            scheduler.observe(observed)
            while True:
                if scheduler.running is not None:
                    if config.world_waits and tick >= scheduler.due:
                        clock.wait(scheduler.running, tick)
                    if not clock.done(scheduler.running, tick):
                        break
                    _take_in(scheduler, actions, buffer, clock, tick)
                else:
                    task = scheduler.next_task(observed)
                    if task is None:
                        break
                    number = trace.inferences[-1].number + 1 if trace.inferences else 0  # a view may drop old ones
                    record = InferenceRecord(
                        number, task.request.kind, task.observed.tick, task.observed.at_s, clock.now()
                    )
                    trace.inferences.append(record)
                    future = _failed(task) if task.problem is not None else (yield task.request)
                    scheduler.running = clock.begin(record, future)
                trace.reason = actions.reason
            now = clock.now()
            pausing = buffer.empty or config.idle is not IdleBehavior.REST
            context = TickContext(tick, now, now - clock.due(tick), pausing, scheduler.waiting_s(clock), sensor)
            sent, queue = actions.send(context, buffer), buffer.left(tick)
            trace.reason = actions.reason
            stepped = _read_step(env.step(_cast(sent.action, env.action_space)), setup.success_required)
            sensor = stepped.problem
            problem = _add(history, stepped.observation) or sensor
            trace.ticks.append(_row(context, clock, sent, queue, scheduler.computing, stepped.reward, stepped.success))
            for view in setup.views:
                view.tick(trace, env)
            over = stepped.over or actions.stopped is not None or len(trace.ticks) == setup.max_ticks
            if not over:
                tick = clock.next_tick(tick)
    except (KeyboardInterrupt, SystemExit):
        _stop_safely(env, actions)
        raise
    trace.stopped = None if actions.stopped is None else str(actions.stopped)
    for view in setup.views:
        view.end(trace)
    return trace


class _EnvStep(NamedTuple):
    """What one step of an environment said."""

    observation: Any
    reward: float
    over: bool
    success: bool
    problem: str | None


def _read_reset(returned: Any) -> Any:
    """The observation of ``env.reset``; a mapping of two keys would unpack into their names."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(f"env.reset returned {_form(returned)}; expected (observation, info), as Gymnasium has it")
    return returned[0]


def _read_step(returned: Any, strict: bool) -> _EnvStep:
    """Read what ``env.step`` returned; text, None and NaN are not taken for yes, no or a number.

    Args:
        returned: five values, as Gymnasium has it.
        strict: ``info`` must have ``success``, and the reward must be finite.

    Raises:
        KeyError: there is no ``success``.
        ValueError: anything else is not what it should be.
    """
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise ValueError(
            f"env.step returned {_form(returned)}; expected (observation, reward, terminated, truncated, info), as "
            "Gymnasium has it"
        )
    observation, reward, terminated, truncated, info = returned
    if not isinstance(info, Mapping):
        raise ValueError(f"the environment's info is {_form(info)}; expected a mapping")
    if strict and "success" not in info:
        raise KeyError("the environment's info has no 'success'; wrap it so that every step reports it as a bool")
    number = _number("reward", reward)
    if strict and not np.isfinite(number):
        raise ValueError(f"the environment's reward is {number}; expected a finite number")
    flags = [
        _flag(name, value)
        for name, value in (
            ("terminated", terminated),
            ("truncated", truncated),
            ("info['success']", info.get("success", False)),
        )
    ]
    problem = info.get("problem")
    return _EnvStep(observation, number, flags[0] or flags[1], flags[2], None if problem is None else str(problem))


def _number(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"the environment's {name} is {shown(value)}; expected a number")
    return float(array.item())


def _flag(name: str, value: Any) -> bool:
    """True or false; some environments report a success as 1.0."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise ValueError(f"the environment's {name} is {shown(value)}; expected true or false")
    return bool(array.item())


def _form(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"


def check_count(name: str, value: int | None) -> None:
    """Check that a setting is a positive integer or None.

    Args:
        name: of the setting.
        value: to check.

    Raises:
        ValueError: it is something else.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
        raise ValueError(f"{name}={value!r}; expected a whole number, at least 1")


def _observed(tick: int, now: float, history: ObservationHistory, problem: str | None) -> ObservationRecord:
    """The present observation; what makes it unusable is a fault of the inference that needs it."""
    if problem is None:
        try:
            return ObservationRecord(tick, now, history.window())
        except (KeyError, ValueError, TypeError) as error:
            problem = f"the last observations do not fit together (keys or shapes changed): {format_exception(error)}"
    return ObservationRecord(tick, now, {}, problem)


def _add(history: ObservationHistory, observation: Any) -> str | None:
    try:
        history.add(observation)
    except (KeyError, ValueError, TypeError) as error:
        return f"the environment gave an observation that cannot be read: {format_exception(error)}"
    return None


def _failed(task: InferenceTask) -> Future[InferenceResult]:
    future: Future[InferenceResult] = Future()
    future.set_result(InferenceResult(error=task.problem, seconds=0.0))
    return future


def _take_in(
    scheduler: InferenceScheduler, actions: ActionFilter, buffer: ActionBuffer, clock: Clock, tick: int
) -> None:
    """An inference has ended: its outcome into its record, its chunk through the filter into the buffer."""
    assert scheduler.running is not None
    record, result = scheduler.running.inference, scheduler.running.future.result()
    scheduler.running = None
    record.ended_s = clock.now() if record.ended_s is None else record.ended_s
    scheduler.note_duration(record, clock.rate_hz)
    record.passes, record.evaluations, record.acceptance = result.passes, result.evaluations, result.acceptance
    if record.kind is InferenceKind.DRAFT:
        if actions.note_draft(record, result):
            scheduler.keep_draft()
        return
    chunk = actions.admit(record, result, buffer, tick)
    if result.error is None:
        scheduler.note_sample(record.tick if chunk is None else chunk.start)
    if chunk is not None:
        scheduler.handed_over(chunk)


def _row(
    context: TickContext,
    clock: Clock,
    sent: SentAction,
    queue: int,
    computing: InferenceKind | None,
    reward: float,
    success: bool,
) -> StepRecord:
    record = None if sent.chunk is None else sent.chunk.inference
    return StepRecord(
        tick=context.tick,
        due_s=clock.due(context.tick),
        sent_s=context.now_s,
        source=sent.source,
        inference=None if record is None else record.number,
        observed_s=None if record is None else record.observed_s,
        begun_s=None if record is None else record.begun_s,
        ended_s=None if record is None else record.ended_s,
        passes=None if record is None else record.passes,
        age_s=None if record is None else context.now_s - record.observed_s,
        queue=queue,
        computing=None if computing is None else str(computing),
        fault=None if sent.fault is None else str(sent.fault),
        response=None if sent.response is None else str(sent.response),
        action=tuple(sent.action.tolist()),
        reward=reward,
        success=success,
    )


def _cast(action: Action, space: gymnasium.Space[Any]) -> Any:
    """The action in the dtype that the environment declares."""
    return action.astype(space.dtype) if space.dtype is not None else action


def _stop_safely(env: gymnasium.Env[Any, Any], actions: ActionFilter) -> None:
    """Bring the robot to rest and close the environment, whatever state either is in."""
    if not isinstance(actions, SafetyFilter):
        return
    with suppress(Exception):
        env.step(_cast(actions.safe_action(), env.action_space))
    with suppress(Exception):
        env.close()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Make SIGTERM raise ``SystemExit`` in the main thread, where the loop then stops safely."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
