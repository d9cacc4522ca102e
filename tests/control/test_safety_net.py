"""Whatever happens between an observation and an action is a counted fault with a defined response and a reason."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from control_fakes import SPEC, TickEnv, TickPolicy

from specpolicy.control.action_space import ActionLimits, ActionSpec
from specpolicy.control.clocks import RealTimeClock, SimulatedLatencyClock
from specpolicy.control.executors import Asynchronous, Blocking, Lockstep, PredraftConfig, PreDrafting, RecedingHorizon
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceRequest, InferenceResult
from specpolicy.control.latency import Constant
from specpolicy.control.loop import ControlLoop
from specpolicy.control.trace import EpisodeTrace


def run(env: TickEnv, policy: Any = None, executor: Any = None, latency_s: float = 0.0, **guards: Any) -> EpisodeTrace:
    clock = SimulatedLatencyClock(20.0, Constant(latency_s))
    loop = ControlLoop(env, policy or TickPolicy(), executor or RecedingHorizon(4), clock, Guards(**guards), SPEC)
    return loop.run(0)


class ChangingEnv(TickEnv):
    """Observes something else from one step on."""

    def __init__(self, change: Callable[[dict[str, Any]], Any], at: int, **more: Any) -> None:
        super().__init__(limit=20, **more)
        self.change, self.at = change, at

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (self.change(observation) if len(self.actions) == self.at else observation, *rest)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda seen: {**seen, "late": np.zeros(1)}, id="a key that appears late"),
        pytest.param(lambda seen: {"tick": np.zeros(3)}, id="another shape"),
        pytest.param(lambda seen: {}, id="nothing"),
        pytest.param(lambda seen: {"tick": [[1.0], [1.0, 2.0]]}, id="ragged"),
        pytest.param(lambda seen: None, id="None"),
    ],
)
def test_an_observation_that_does_not_fit_is_a_failure_of_the_inference_that_needs_it(change: Any) -> None:
    env = ChangingEnv(change, at=4)  # the observation of tick 4, for which a chunk is due
    trace = run(env, failure="hold")
    assert trace.faults["failure"] >= 1 and trace.stopped is None and len(trace.ticks) == 20
    failed = [record for record in trace.inferences if record.error is not None]
    assert failed[0].tick == 4 and trace.reason == failed[-1].error and trace.reason
    assert not env.actions[4][:2].any() and env.actions[19][:2].any()  # holds, then goes on
    stopped = run(ChangingEnv(change, at=4), failure="stop")
    assert stopped.stopped == "failure" and len(stopped.ticks) == 5 and stopped.reason


def test_an_observation_that_no_inference_needs_does_not_matter() -> None:
    trace = run(ChangingEnv(lambda seen: {"tick": np.zeros(3)}, at=1))
    assert not trace.faults and len(trace.ticks) == 20


def test_a_predictor_that_fails_is_a_failed_draft() -> None:
    def broken(window: Any, ticks: int, actions: Any) -> Any:
        raise ZeroDivisionError("no idea")

    trace = run(TickEnv(limit=20), executor=PreDrafting(RecedingHorizon(4), PredraftConfig(2, broken)), latency_s=0.1)
    assert trace.faults["failure"] > 0 and "no idea" in str(trace.reason) and len(trace.ticks) == 20


class Odd(TickPolicy):
    """Answers from its second inference on with something odd."""

    def __init__(self, odd: Any) -> None:
        super().__init__()
        self.odd = odd

    def infer(self, request: InferenceRequest) -> Any:
        result = super().infer(request)
        return self.odd if len(self.asked) > 1 else result


ODD = [
    pytest.param(None, "gave NoneType", id="None"),
    pytest.param([[1.0, 2.0, 3.0]], "gave list", id="list"),
    pytest.param(torch.ones(5, 3), "gave Tensor", id="tensor"),
    pytest.param(InferenceResult(), "gave NoneType as actions", id="no actions"),
    pytest.param(InferenceResult([[1.0, 2.0, 3.0]]), "gave list as actions", id="list of actions"),  # type: ignore[arg-type]
    pytest.param(InferenceResult(torch.ones(5, 3)), "gave Tensor as actions", id="tensor of actions"),  # type: ignore[arg-type]
    pytest.param(InferenceResult(np.ones((5, 3), dtype=object)), "an array of object", id="object array"),
    pytest.param(InferenceResult(np.array([["1", "2", "3"]])), "an array of <U1", id="text"),  # type: ignore[arg-type]
    pytest.param(InferenceResult(np.ones((0, 3))), r"shape \(0, 3\)", id="empty"),
    pytest.param(InferenceResult(np.ones(3)), r"shape \(3,\)", id="one action"),
    pytest.param(
        InferenceResult(np.ones((5, 14))), r"shape \(5, 14\).*takes \(steps >= 1, 3\)", id="another dimension"
    ),
]


@pytest.mark.parametrize(("odd", "says"), ODD)
def test_a_policy_that_gives_no_usable_actions_is_a_counted_fault(odd: Any, says: str) -> None:
    env = TickEnv(limit=20)
    trace = run(env, Odd(odd), give_up_after=3)
    assert trace.stopped == "failure" and trace.faults == {"failure": 3}
    assert re.search(says, str(trace.reason)), trace.reason
    assert trace.inferences[-1].error == trace.reason
    assert not env.actions[-1][:2].any()  # it ends at rest


def test_what_is_sent_is_checked_in_the_type_in_which_it_is_sent() -> None:
    """1e39 is finite in float64 and infinite in float32, and no limit forbids infinity."""

    def huge(number: int, result: InferenceResult) -> InferenceResult:
        if number == 0:
            return result
        return InferenceResult(np.full((12, 3), 1e39), 8)

    env = TickEnv(limit=20, bound=np.inf)
    trace = run(env, TickPolicy(spoil=huge), non_finite="hold")
    assert trace.faults["non_finite"] > 0 and "not finite as float32" in str(trace.reason)
    assert all(np.isfinite(action).all() for action in env.actions)


def test_planned_chunks_are_copies() -> None:
    class Reusing(TickPolicy):
        """Writes every chunk into the same array."""

        array = np.zeros((12, 3))

        def infer(self, request: InferenceRequest) -> InferenceResult:
            result = super().infer(request)
            self.array[:] = result.actions
            return InferenceResult(self.array, result.passes)

    env, reference = TickEnv(limit=20), TickEnv(limit=20)
    run(env, Reusing(), Asynchronous(4, 2), latency_s=0.1)
    run(reference, TickPolicy(), Asynchronous(4, 2), latency_s=0.1)
    np.testing.assert_array_equal(env.actions, reference.actions)


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "ten"])
def test_max_ticks_is_a_positive_number(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"max_ticks=.*expected a whole number from 1"):
        ControlLoop(TickEnv(), TickPolicy(), Lockstep(4), SimulatedLatencyClock(), action_spec=SPEC, max_ticks=wrong)


@pytest.mark.parametrize("make", [Lockstep, Blocking, RecedingHorizon, Asynchronous])
@pytest.mark.parametrize("wrong", [2.5, 0, -1, True, "4"])
def test_executors_are_checked_where_they_are_made(make: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match="n_action_steps"):
        make(wrong)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (lambda: ActionSpec((0, 1), (2,), initial=(float("nan"),)), "expected finite numbers"),
        (lambda: ActionSpec((0, 1), (2,), initial=("open",)), "expected finite numbers"),  # type: ignore[arg-type]
        (lambda: ActionSpec((0, 1), (2,), initial=(5.0,)), "initial value 5 lies outside the environment's limits"),
    ],
)
def test_the_safe_action_is_checked_at_start(spec: Callable[[], ActionSpec], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ControlLoop(TickEnv(bound=1.0), TickPolicy(), Lockstep(4), SimulatedLatencyClock(), action_spec=spec())


def test_a_standstill_outside_the_box_is_refused() -> None:
    space = gymnasium.spaces.Box(0.5, 1.0, (3,), np.float32)
    with pytest.raises(ValueError, match=r"entry 0 of an action: a delta of 0 \(standstill\) lies outside"):
        ActionLimits.from_space(space, ActionSpec((0, 1), (2,), initial=(0.7,)))


@pytest.mark.parametrize("value", [[np.nan], [1.0, 2.0], ["open"]])
def test_an_initial_value_that_is_observed_must_be_a_number(value: Any) -> None:
    spec = ActionSpec((0, 1), (2,), initial_from="gripper")
    with pytest.raises(ValueError, match="initial_from='gripper': the first observation there is"):
        spec.initial_action({"gripper": value})


@pytest.mark.parametrize("wrong", [{"max_age_s": float("nan")}, {"brake_ticks": 2.5}, {"tolerance": float("nan")}])
def test_guards_are_checked_where_they_are_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Guards(**wrong)


class Watched(TickEnv):
    """Notes when it was closed."""

    closed_at: float | None = None

    def close(self) -> None:
        self.closed_at = time.monotonic()


class Slow(TickPolicy):
    """Its second inference takes two seconds."""

    def infer(self, request: InferenceRequest) -> InferenceResult:
        result = super().infer(request)
        if len(self.asked) == 2:
            time.sleep(2.0)
        return result


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sends_the_safe_action_and_closes_the_environment_while_an_inference_runs(number: int) -> None:
    env, sent_at = Watched(limit=10**6), []

    def interrupt() -> None:
        sent_at.append(time.monotonic())
        os.kill(os.getpid(), number)

    timer = threading.Timer(0.4, interrupt)  # chunks of 4 ticks at 20 Hz: the second inference begins at 0.2 s
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
            ControlLoop(env, Slow(), RecedingHorizon(4), RealTimeClock(20.0), action_spec=SPEC).run(0)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, handler)
    assert env.closed_at is not None and env.closed_at - sent_at[0] < 0.5  # the inference would have taken 1.8 s more
    assert env.actions[0][:2].any() or len(env.actions) > 1
    assert not env.actions[-1][:2].any() and env.actions[-1][2] == pytest.approx(0.5)  # at rest, the gripper as it was
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_during_an_inference_in_the_same_thread() -> None:
    class Interrupted(TickPolicy):
        """Ctrl-C in its second inference."""

        def infer(self, request: InferenceRequest) -> InferenceResult:
            result = super().infer(request)
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return result

    env = Watched()
    with pytest.raises(KeyboardInterrupt):
        run(env, Interrupted())
    assert env.closed_at is not None and len(env.actions) == 5 and not env.actions[-1][:2].any()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sends signals to processes")
def test_ctrl_c_while_workers_start_leaves_no_traceback_of_theirs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import signal
            import gymnasium
            from specpolicy.rollout.env_worker import EnvPool, MakeEnv, ResetRequest, WorkerConfig
            from specpolicy.rollout.episodes import EpisodeKey
            from specpolicy.control import Constant, Lockstep

            if __name__ == "__main__":
                signal.signal(signal.SIGINT, signal.default_int_handler)  # also where who started the tests ignores it
                try:
                    with EnvPool(WorkerConfig(MakeEnv("CartPole-v1"), 1), num_envs=2) as pool:
                        for worker in pool.workers:
                            worker.send(ResetRequest(Lockstep(1), Constant(0.0), EpisodeKey("ddpm", 0, 0)))
                        print("started", flush=True)
                        while True:
                            for worker in pool.workers:
                                worker.receive()
                                worker.send(ResetRequest(Lockstep(1), Constant(0.0), EpisodeKey("ddpm", 0, 0)))
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        out, err = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
