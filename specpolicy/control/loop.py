"""The control loop: observe, compute, decide, check, send; at a fixed rate."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from specpolicy.control.action_buffer import ActionBuffer
from specpolicy.control.action_space import Action, ActionSpec, Limits
from specpolicy.control.clocks import Clock
from specpolicy.control.executors import Executor, IdleBehavior
from specpolicy.control.inference import InferenceKind, InferenceRequest, InferenceResult, LoopPolicy
from specpolicy.control.inference_scheduler import InferenceScheduler, ObservationRecord
from specpolicy.control.safety import Guards, SafetyFilter, SentAction, TickContext
from specpolicy.control.trace import EpisodeTrace, InferenceRecord, StepRecord
from specpolicy.control.viewers import View
from specpolicy.policies.observations import ObservationHistory

ControlCoroutine = Generator[InferenceRequest, "Future[InferenceResult]", EpisodeTrace]
"""Yields what is to be computed, is sent what comes of it, and returns the account."""


@dataclass(frozen=True)
class ControlSetup:
    """What is to be controlled, and how.

    Attributes:
        env: any environment with a Box of actions; ``info["success"]`` is read where there is one.
        meaning: of its actions.
        executor, clock, guards: see there.
        n_obs_steps: observation steps that the policy sees.
        views: are shown every tick.
        max_ticks: end an episode after so many ticks, even if the environment would go on.
    """

    env: gymnasium.Env[Any, Any]
    meaning: ActionSpec
    executor: Executor
    clock: Clock
    guards: Guards
    n_obs_steps: int
    views: Sequence[View] = ()
    max_ticks: int | None = None


class ControlLoop:
    """Runs a policy on an environment at a fixed rate.

    Args:
        env: the environment; knows no more of it than gymnasium's interface.
        policy: answers the loop's questions; see :class:`SampledPolicy`.
        executor: what to do about the time that the policy takes.
        clock: what time that is.
        guards: what to do when something goes wrong.
        meaning: which entries of an action are rates and which are states; all rates by default.
        views, max_ticks: see :class:`ControlSetup`.

    Raises:
        ValueError: the executor pre-drafts and the policy cannot; or the actions are not as described.

    Example:
        >>> loop = ControlLoop(env, SampledPolicy(policy, sampler), Asynchronous(), RealTimeClock(20))  # doctest: +SKIP
        >>> account = loop.run(seed=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        policy: LoopPolicy,
        executor: Executor,
        clock: Clock,
        guards: Guards | None = None,
        meaning: ActionSpec | None = None,
        views: Sequence[View] = (),
        max_ticks: int | None = None,
    ) -> None:
        if executor.rules.ahead is not None and not policy.predrafts:
            raise ValueError(
                "the executor pre-drafts, but this policy or its sampler has no predraft(): take a speculative "
                "sampler, or another executor"
            )
        meaning = meaning if meaning is not None else ActionSpec(range(int(np.prod(env.action_space.shape or ()))))
        Limits.of(env.action_space, meaning)
        horizon = policy.n_obs_steps
        self.robot = ControlSetup(env, meaning, executor, clock, guards or Guards(), horizon, views, max_ticks)
        self.policy = policy

    def run(self, seed: int, repeat: int = 0) -> EpisodeTrace:
        """Play one episode.

        Args:
            seed: of the environment's reset.
            repeat: tells apart episodes from one initial state; seed and repeat fix all random streams.
        """
        self.policy.reset(seed, repeat)
        conversation = control_steps(self.robot, seed, repeat)
        try:
            question = next(conversation)
            while True:
                question = conversation.send(self.robot.clock.launch(partial(self.policy.infer, question)))
        except StopIteration as end:
            account: EpisodeTrace = end.value
            return account
        finally:
            self.robot.clock.finish()


def control_steps(robot: ControlSetup, seed: int, repeat: int = 0) -> ControlCoroutine:
    """One episode as a conversation with whoever computes, so that many episodes can share a network's passes."""
    env, clock, rules = robot.env, robot.clock, robot.executor.rules
    observation, _ = env.reset(seed=seed)
    history = ObservationHistory(robot.n_obs_steps, observation)
    limits = Limits.of(env.action_space, robot.meaning, robot.guards.tolerance)
    gate = SafetyFilter(robot.guards, robot.meaning, limits, robot.meaning.first(history.latest), clock.rate_hz)
    account = EpisodeTrace(seed, repeat, clock.rate_hz, rules.play, faults=gate.faults)
    plan, desk = rules.plan(), InferenceScheduler(rules)
    for view in robot.views:
        view.begin(account)
    clock.start(seed, repeat)
    tick, over = 0, False
    while not over:
        observed = ObservationRecord(tick, clock.now(), history.window())
        desk.observe(observed)
        while True:
            if desk.running is not None:
                if rules.world_waits and tick >= desk.due:
                    clock.wait(desk.running, tick)
                if not clock.done(desk.running, tick):
                    break
                _take_in(desk, gate, plan, clock, tick)
            else:
                task = desk.next_task(observed)
                if task is None:
                    break
                kind, about = task.question.kind, task.observed
                job = InferenceRecord(len(account.jobs), kind, about.tick, about.at_s, clock.now())
                account.jobs.append(job)
                desk.running = clock.begin(job, (yield task.question))
        now = clock.now()
        pausing = plan.empty or rules.meanwhile is not IdleBehavior.REST
        moment = TickContext(tick, now, now - clock.due(tick), pausing, desk.waiting_s(clock))
        sent, queue = gate.send(moment, plan), plan.left(tick)
        observation, reward, terminated, truncated, info = env.step(_cast(sent.action, env.action_space))
        history.add(observation)
        account.ticks.append(
            _row(moment, clock, sent, queue, desk.computing, float(reward), bool(info.get("success", False)))
        )
        for view in robot.views:
            view.tick(account, env)
        over = bool(terminated or truncated) or gate.stopped is not None or len(account.ticks) == robot.max_ticks
        if not over:
            tick = clock.next_tick(tick)
    account.stopped = None if gate.stopped is None else str(gate.stopped)
    for view in robot.views:
        view.end(account)
    return account


def _take_in(desk: InferenceScheduler, gate: SafetyFilter, plan: ActionBuffer, clock: Clock, tick: int) -> None:
    """A computation has ended: its outcome into its job, its chunk through the gate into the plan."""
    assert desk.running is not None
    job, answer = desk.running.job, desk.running.future.result()
    desk.running = None
    job.ended_s = clock.now() if job.ended_s is None else job.ended_s
    desk.note_duration(job, clock.rate_hz)
    job.passes, job.evaluations, job.acceptance = answer.passes, answer.evaluations, answer.acceptance
    if job.kind is InferenceKind.DRAFT:
        if gate.note_draft(job, answer):
            desk.keep_draft()
        return
    chunk = gate.admit(job, answer, plan, tick)
    if chunk is not None:
        desk.handed_over(chunk)


def _row(
    moment: TickContext,
    clock: Clock,
    sent: SentAction,
    queue: int,
    computing: InferenceKind | None,
    reward: float,
    success: bool,
) -> StepRecord:
    job = None if sent.chunk is None else sent.chunk.job
    return StepRecord(
        tick=moment.tick,
        due_s=clock.due(moment.tick),
        sent_s=moment.now_s,
        source=sent.source,
        job=None if job is None else job.number,
        observed_s=None if job is None else job.observed_s,
        begun_s=None if job is None else job.begun_s,
        ended_s=None if job is None else job.ended_s,
        passes=None if job is None else job.passes,
        age_s=None if job is None else moment.now_s - job.observed_s,
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
