"""The control loop: observe, infer, decide, check, send; at a fixed rate."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import gymnasium
import numpy as np

from specpolicy.control.action_buffer import ActionBuffer
from specpolicy.control.action_space import Action, ActionLimits, ActionSpec
from specpolicy.control.clocks import Clock
from specpolicy.control.command_limiter import CommandLimiter
from specpolicy.control.env_step import EnvStep, read_reset, read_step
from specpolicy.control.executors import Executor, IdleBehavior
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceKind, InferenceRequest, InferenceResult, LoopPolicy, checked_seed
from specpolicy.control.inference_scheduler import InferenceScheduler, InferenceTask, ObservationRecord
from specpolicy.control.motion_limits import MotionLimits
from specpolicy.control.safety import ActionFilter, NoFilter, SafetyFilter, SentAction, TickContext
from specpolicy.control.trace import EpisodeTrace, InferenceRecord, StepRecord
from specpolicy.control.viewers import View
from specpolicy.control.watchdog import Watchdog
from specpolicy.policies.observations import ObservationHistory
from specpolicy.utils.checks import check_integer
from specpolicy.utils.errors import format_exception

ControlCoroutine = Generator[InferenceRequest, "Future[InferenceResult]", EpisodeTrace]
"""Yields what is to be inferred, is sent the result's future, and returns the trace."""

MOST_STOPPING_COMMANDS = 10_000
"""After an interruption; a robot that needs more to come to rest has limits that let it never stop."""


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
        limits: of motion, and the controller's rate; need guards. With several commands an action, the environment
            takes one step for each of them, and the last one's observation is the tick's.
        watchdog: gets a heartbeat with every command, and is disarmed between episodes; needs guards.
        max_delay: most actions under way that the policy continues; 0 if it is not delay-conditioned.

    Raises:
        ValueError: ``max_ticks`` or ``n_obs_steps`` is no positive integer, guards lack an action description, an
            executor or limits their guards, or the action description or the limits do not fit the environment.
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
    limits: MotionLimits | None = None
    watchdog: Watchdog | None = None
    max_delay: int = 0

    def __post_init__(self) -> None:
        check_integer("n_obs_steps", self.n_obs_steps, 1)
        if self.max_ticks is not None:
            check_integer("max_ticks", self.max_ticks, 1)
        if self.guards is None:
            if not self.executor.config.world_waits:
                raise ValueError(f"{self.executor} moves while the policy computes, which takes guards")
            if self.limits is not None or self.watchdog is not None:
                raise ValueError("limits of motion and a watchdog belong to the safety filter, which takes guards")
        elif self.action_spec is None:
            raise ValueError(
                "guards need an action_spec: which entries of an action are deltas, and which are absolute"
            )
        else:
            limits = ActionLimits.from_space(self.env.action_space, self.action_spec)
            if self.limits is not None:
                self.limits.commands_per_action(self.clock.rate_hz)
                self.limits.box(limits, self.action_spec)
            if self.watchdog is not None:
                self.watchdog.check(self.action_spec.dim, self.clock.rate_hz)

    def make_filter(self, history: ObservationHistory) -> ActionFilter:
        """Make what decides about actions in one episode.

        Args:
            history: with the first observation.

        Returns:
            A :class:`SafetyFilter`, or a :class:`NoFilter` without guards.

        Raises:
            ValueError: the first observation lacks what ``action_spec.initial_from`` or the workspace names, or the
                robot begins outside its limits.
        """
        if self.guards is None or self.action_spec is None:
            return NoFilter(self.executor.config.n_action_steps)
        limits = ActionLimits.from_space(self.env.action_space, self.action_spec, self.guards.tolerance)
        initial = self.action_spec.initial_action(history.latest)
        motion, rate_hz = None, self.clock.rate_hz
        if self.limits is not None:
            limits = self.limits.box(limits, self.action_spec)
            motion = CommandLimiter(self.limits, self.action_spec, limits, initial, rate_hz, history.latest)
        return SafetyFilter(self.guards, self.action_spec, limits, initial, rate_hz, motion)


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
        limits: of motion, and the controller's rate; see :class:`ControlSetup`.
        watchdog: sends the safe action from a process of its own when this loop does not go on.

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
        limits: MotionLimits | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        spec = action_spec or ActionSpec(range(int(np.prod(env.action_space.shape or ()))))
        setup = ControlSetup(
            env, executor, clock, policy.n_obs_steps, spec, guards or Guards(), views, max_ticks,
            limits=limits, watchdog=watchdog, max_delay=getattr(policy, "max_delay", 0),
        )  # fmt: skip
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
    observation = read_reset(env.reset(seed=seed))
    history = ObservationHistory(setup.n_obs_steps, observation)
    actions, deltas = setup.make_filter(history), tuple(setup.action_spec.delta_dims) if setup.action_spec else ()
    trace = EpisodeTrace(seed, repeat, clock.rate_hz, config.n_action_steps, faults=actions.faults, delta_dims=deltas)
    buffer, scheduler = config.make_buffer(), InferenceScheduler(config, setup.max_delay)
    trace.observation = history.latest
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
                    if not scheduler.ended(clock, tick):
                        break
                    _take_in(scheduler, actions, buffer, clock, tick)
                else:
                    task = scheduler.next_task(observed, buffer)
                    if task is None:
                        break
                    number = trace.inferences[-1].number + 1 if trace.inferences else 0  # a view may drop old ones
                    record = InferenceRecord(
                        number, task.request.kind, task.tick, task.observed.at_s, clock.now(),
                        prefix=task.request.under_way, predicted=task.predicted,
                    )  # fmt: skip
                    trace.inferences.append(record)
                    future = _failed(task) if task.problem is not None else (yield task.request)
                    scheduler.begun(clock.begin(record, future))
            now = clock.now()
            pausing = buffer.empty or config.idle is not IdleBehavior.REST
            context = TickContext(tick, now, now - clock.due(tick), pausing, scheduler.waiting_s(clock), sensor)
            sent, queue = actions.send(context, buffer), buffer.left(tick)
            sent, stepped = _send(setup, actions, sent, tick)
            sensor = stepped.problem
            problem = _add(history, stepped.observation) or sensor
            trace.reason, trace.observation = actions.reason, history.latest
            trace.ticks.append(_row(context, clock, sent, queue, scheduler.computing, stepped.reward, stepped.success))
            for view in setup.views:
                view.tick(trace, env)
            stopped = actions.stopped is not None and actions.at_rest
            over = stepped.over or stopped or len(trace.ticks) == setup.max_ticks
            if not over:
                tick = clock.next_tick(tick)
    except (KeyboardInterrupt, SystemExit):
        _stop_safely(setup, actions)
        raise
    except Exception:
        if setup.watchdog is not None:
            setup.watchdog.trip()
        raise
    if setup.watchdog is not None:
        setup.watchdog.disarm()
    trace.tracked, trace.limited = actions.tracked, actions.limited
    trace.stopped = None if actions.stopped is None else str(actions.stopped)
    for view in setup.views:
        view.end(trace)
    return trace


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
    record.actions = result.actions
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


def _send(setup: ControlSetup, actions: ActionFilter, sent: SentAction, tick: int) -> tuple[SentAction, EnvStep]:
    """Send the commands of a tick, each at its time, or not at all if that has gone by; return their sum."""
    env, clock, count = setup.env, setup.clock, actions.commands_per_action
    command, commands, reward, success = sent.action, [sent.action], 0.0, False
    for number in range(count):
        if number > 0:
            if not clock.wait_within(tick, number / count, (number + 1) / count):
                continue
            command = actions.follow(number)
            commands.append(command)
        if setup.watchdog is not None and isinstance(actions, SafetyFilter):
            setup.watchdog.beat(actions.standstill)
        stepped = read_step(env.step(_cast(command, env.action_space)), setup.success_required)
        actions.observe(stepped.observation if stepped.problem is None else None)
        reward, success = reward + stepped.reward, success or stepped.success
        if stepped.over:
            break
    if count > 1 and setup.action_spec is not None:
        sent = replace(sent, action=setup.action_spec.over_tick(np.stack(commands)))
    return sent, stepped._replace(reward=reward, success=success)


def _cast(action: Action, space: gymnasium.Space[Any]) -> Any:
    """The action in the dtype that the environment declares."""
    return action.astype(space.dtype) if space.dtype is not None else action


def _stop_safely(setup: ControlSetup, actions: ActionFilter) -> None:
    """Bring the robot to rest, as fast as its limits allow, and close the environment, whatever state either is in."""
    if not isinstance(actions, SafetyFilter):
        return
    env, clock, watchdog = setup.env, setup.clock, setup.watchdog
    with suppress(Exception):
        for _ in range(MOST_STOPPING_COMMANDS):
            command = actions.safe_action()
            if watchdog is not None:
                watchdog.beat(actions.standstill)
            env.step(_cast(command, env.action_space))
            if actions.at_rest:
                break
            clock.pause(1.0 / (clock.rate_hz * actions.commands_per_action))
    if watchdog is not None:
        watchdog.disarm()
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
