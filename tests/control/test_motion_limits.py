"""No command beyond a limit ever leaves, whatever the policy does; commands between actions; settings in one line."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from control_fakes import SPEC, TickEnv, TickPolicy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specpolicy.control.action_space import ActionLimits, ActionSpec
from specpolicy.control.clocks import RealTimeClock, SimulatedLatencyClock
from specpolicy.control.command_limiter import CommandLimiter, MotionState, largest_step
from specpolicy.control.executors import Asynchronous, Blocking, Lockstep, RecedingHorizon
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceRequest, InferenceResult
from specpolicy.control.interpolation import Interpolation, path
from specpolicy.control.latency import Constant
from specpolicy.control.loop import ControlLoop
from specpolicy.control.metrics import measure
from specpolicy.control.motion_limits import MotionLimits, Orientation, Workspace
from specpolicy.control.safety import SafetyFilter, SentAction, UnsafeAction
from specpolicy.control.trace import EpisodeTrace

MIXED = ActionSpec(delta_dims=(0, 1), absolute_dims=(2, 3), initial=(0.4, -2.0), velocity_dims=(1,))
"""A displacement, a velocity, and two positions, the first in a box that leaves zero out."""


class Arm(gymnasium.Env[Any, Any]):
    """Integrates the first entry into an observed position; remembers every command."""

    def __init__(self, ticks: int, dtype: Any = np.float32, blind: bool = False) -> None:
        self.ticks, self.blind = ticks, blind
        self.observation_space = gymnasium.spaces.Dict({"hand": gymnasium.spaces.Box(-9, 9, (1,), np.float64)})
        self.action_space = gymnasium.spaces.Box(*np.array([[-5, -5, 0.2, -5], [5, 5, 0.9, 5]], dtype), dtype=dtype)
        self.commands: list[NDArray[np.float64]] = []
        self.hand = np.zeros(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.commands, self.hand = [], np.zeros(1)
        return {"hand": self.hand.copy()}, {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        self.commands.append(action.astype(np.float64))
        self.hand = self.hand + 0.05 * action[0]
        seen = np.array([np.nan]) if self.blind and len(self.commands) % 3 == 0 else self.hand.copy()
        return {"hand": seen}, 0.0, False, len(self.commands) >= self.ticks, {}


class Erratic:
    """Gives whatever it was told to give."""

    n_obs_steps, predrafts = 1, False

    def __init__(self, chunks: list[Any]) -> None:
        self.chunks, self.asked = chunks, 0

    def reset(self, seed: int, repeat: int) -> None:
        self.asked = 0

    def infer(self, request: InferenceRequest) -> InferenceResult:
        self.asked += 1
        chunk = self.chunks[(self.asked - 1) % len(self.chunks)]
        if isinstance(chunk, Exception):
            raise chunk
        return InferenceResult(chunk, 8)


wild = st.one_of(
    st.floats(-1.0, 1.0), st.floats(-1e4, 1e4), st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e300, -1e39, 0.4, 5.0])
)
tame = st.floats(-5.0, 5.0)
chunks = st.one_of(
    st.lists(st.lists(tame, min_size=4, max_size=4), min_size=3, max_size=8).map(np.array),
    st.lists(st.lists(wild, min_size=4, max_size=4), min_size=1, max_size=8).map(np.array),
    st.sampled_from([None, [[0.0] * 4], np.zeros((3, 5)), np.full((2, 4), "x"), RuntimeError("no"), np.ones((3, 4))]),
)
bounds = st.one_of(st.none(), st.floats(0.05, 50.0))
executors = st.sampled_from([Lockstep(3), Blocking(3), RecedingHorizon(2), Asynchronous(3, 2)])
responses = st.fixed_dictionaries(
    {
        "non_finite": st.sampled_from(["last_safe", "hold", "brake", "stop"]),
        "out_of_range": st.sampled_from(["clip", "hold", "brake"]),
        "failure": st.sampled_from(["last_safe", "brake"]),
        "give_up_after": st.none(),
    }
)


def check_commands(env: Arm, limits: MotionLimits, hz: float) -> None:
    """The limits, computed from nothing but what the environment was sent."""
    rounding = 1e-6  # of float32 commands of up to 5
    for entry, kind in enumerate(("delta", "velocity", "absolute", "absolute")):
        value = np.array([command[entry] for command in env.commands])
        start = {2: 0.4, 3: -2.0}.get(entry, 0.0)
        moved = {"delta": value, "velocity": value / hz, "absolute": np.diff(value, prepend=start)}[kind]
        changed = np.diff(moved, prepend=0.0)
        step, velocity, acceleration = (
            np.inf if limit is None else limit[entry] if isinstance(limit, list) else limit
            for limit in (limits.step, limits.velocity, limits.acceleration)
        )
        step, velocity, acceleration = (np.inf if x is None else x for x in (step, velocity, acceleration))
        assert np.all(np.abs(moved) <= min(step, velocity / hz) + rounding)
        assert np.all(np.abs(changed) <= acceleration / hz**2 + 2 * rounding)
    box = np.array([[-5, -5, 0.25, -3.0], [5, 5, 0.8, 4.0]], dtype=np.float32)
    assert all(np.all(command >= box[0]) and np.all(command <= box[1]) for command in env.commands)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(chunks, min_size=1, max_size=4),
    st.tuples(bounds, bounds, bounds, bounds),
    st.tuples(bounds, bounds, bounds, bounds),
    bounds,
    st.sampled_from(list(Interpolation)),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([0.0, 0.2]),
    executors,
    responses,
)
def test_no_command_beyond_a_limit_ever_leaves(
    given_chunks: list[Any], velocity: Any, acceleration: Any, step: Any, interpolation: Any, multiple: int,
    ramp_s: float, executor: Any, response: dict[str, Any],
) -> None:  # fmt: skip
    limits = MotionLimits(
        low=[None, None, 0.25, -3.0], high=[None, None, 0.8, 4.0], velocity=list(velocity), step=step,
        acceleration=list(acceleration), ramp_s=ramp_s, controller_hz=10.0 * multiple, interpolation=interpolation,
    )  # fmt: skip
    env = Arm(25 * multiple)
    clock = SimulatedLatencyClock(10.0, Constant(0.1))
    loop = ControlLoop(env, Erratic(given_chunks), executor, clock, Guards(**response), MIXED, limits=limits)
    trace = loop.run(0)
    assert env.commands
    check_commands(env, limits, 10.0 * multiple)
    if trace.stopped is not None:  # it goes on until it is at rest
        assert np.allclose(env.commands[-1][:2], 0.0) and (len(env.commands) == env.ticks or np.allclose(
            env.commands[-1][2:], (env.commands[-2] if len(env.commands) > 1 else np.array([0, 0, 0.4, -2.0]))[2:]
        ))  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(chunks, min_size=1, max_size=3), bounds, st.sampled_from([1, 4]), st.booleans(), st.booleans())
def test_a_hand_never_leaves_its_workspace(
    given_chunks: list[Any], acceleration: float | None, multiple: int, blind: bool, mirrored: bool
) -> None:
    """The position that delta entries move, also where the sensor fails."""
    workspace = Workspace("hand", [0], [-0.2], [0.12], 0.05)
    env = Arm(30 * multiple, blind=blind)
    limits = MotionLimits(
        acceleration=None if acceleration is None else [acceleration, None, None, None],
        controller_hz=10.0 * multiple,
        workspace=workspace,
    )
    loop = ControlLoop(env, Erratic(given_chunks), Blocking(3), SimulatedLatencyClock(10.0), None, MIXED, limits=limits)
    loop.run(0)
    position = 0.05 * np.cumsum([command[0] for command in env.commands])
    assert position.max() <= 0.12 + 1e-6 and position.min() >= -0.2 - 1e-6
    if blind:  # what was not observed is not trusted
        assert not np.any([command[0] for command in env.commands[3::3]])


def test_a_hand_outside_its_workspace_may_only_come_back() -> None:
    env = Arm(20)
    limits = MotionLimits(workspace=Workspace("hand", [0], [-0.2], [0.12], 0.05))
    box = limits.box(ActionLimits.from_space(env.action_space, MIXED), MIXED)
    limiter = CommandLimiter(limits, MIXED, box, MIXED.initial_action({}), 10.0, {"hand": np.zeros(1)})
    limiter.observe({"hand": np.array([0.3])})
    for wanted, sent in ((2.0, 0.0), (-1.0, -1.0)):
        limiter.aim(np.array([wanted, 0.0, 0.4, -2.0]), None, MotionState.TRACK)
        command, limited = limiter.command(0)
        assert command[0] == sent and limited == (wanted > 0)


@given(st.floats(0.0, 1e3), st.floats(1e-3, 1e3))
def test_from_the_largest_step_the_robot_comes_to_rest_at_the_border(room: float, change: float) -> None:
    step = float(largest_step(np.array([room]), np.array([change]))[0])
    used = 0.0
    while step > 1e-12 * max(room, 1.0):
        used, step = used + step, step - change
    assert used == pytest.approx(room, rel=1e-6, abs=1e-6)


def test_the_exit_looks_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limiter with a mistake is found out before anything is sent."""
    limits = MotionLimits(velocity=[1.0, None, None, None])
    env = Arm(20)
    box = limits.box(ActionLimits.from_space(env.action_space, MIXED), MIXED)
    initial = MIXED.initial_action({})
    limiter = CommandLimiter(limits, MIXED, box, initial, 10.0, {})
    gate = SafetyFilter(Guards(), MIXED, box, initial, 10.0, limiter)
    with pytest.raises(UnsafeAction, match="the step or velocity limit of entry 0"):
        gate._checked(SentAction(np.array([0.2, 0.0, 0.4, -2.0]), "planned"))
    assert gate._checked(SentAction(np.array([0.1, 0.0, 0.4, -2.0]), "planned")).action[0] == 0.1


POSITION = ActionSpec((), (0,), initial=(0.0,))


def trajectory(limits: MotionLimits, actions: list[float], rate_hz: float = 10.0) -> NDArray[np.float64]:
    """Commands for one absolute entry, each action with the next one known."""
    space = gymnasium.spaces.Box(-100, 100, (1,), np.float64)
    box = limits.box(ActionLimits.from_space(space, POSITION), POSITION)
    limiter = CommandLimiter(limits, POSITION, box, np.zeros(1), rate_hz, {})
    out = []
    for now, following in zip(actions, [*actions[1:], None], strict=True):
        ahead = None if following is None else np.array([following])
        limiter.aim(np.array([now]), ahead, MotionState.TRACK)
        for number in range(limiter.commands_per_action):
            command, _ = limiter.command(number)
            limiter.sent(command)
            out.append(command[0])
    return np.array(out)


@pytest.mark.parametrize("method", list(Interpolation))
def test_commands_reach_every_action_and_smoothly(method: Interpolation) -> None:
    actions = [1.0, 2.0, 4.0, 3.0, 3.0]
    commands = trajectory(MotionLimits(controller_hz=200.0, interpolation=method), actions)
    assert commands[19::20].tolist() == actions
    if method is Interpolation.LINEAR:
        assert commands[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    speed = np.diff(commands, prepend=0.0) * 200
    jump = np.abs(np.diff(speed)).max()
    smooth = {Interpolation.LINEAR: (25.0, 35.0), Interpolation.CUBIC: (0.0, 15.0), Interpolation.MINIMUM_JERK: (0, 8)}
    assert smooth[method][0] <= jump <= smooth[method][1]


def test_the_quintic_has_the_states_that_it_is_given_and_no_more_jerk_than_others() -> None:
    start, end = np.array([[0.3], [1.0], [-2.0]]), np.array([[2.0], [0.5]])
    times = np.linspace(0.0, 1.0, 2001)
    quintic = np.array([path(Interpolation.MINIMUM_JERK, start, end, s)[0] for s in times])
    speed = np.gradient(quintic, times)
    acceleration = np.gradient(speed, times)
    assert (quintic[0], quintic[-1]) == pytest.approx((0.3, 2.0), abs=1e-9)
    assert (speed[0], speed[-1]) == pytest.approx((1.0, 0.5), abs=0.02)
    assert (acceleration[2], acceleration[-3]) == pytest.approx((-2.0, 0.0), abs=0.2)
    jerk = np.diff(quintic, 3)
    for sign in (-1, 1):  # any other way with the same states at both ends
        other = quintic + sign * 0.05 * (times * (1 - times)) ** 3 * 64
        assert (np.diff(other, 3) ** 2).sum() > (jerk**2).sum()


def test_differences_are_divided_and_velocities_kept() -> None:
    limits = MotionLimits(controller_hz=40.0)
    env = Arm(40)
    actions = np.tile([0.8, 2.0, 0.5, -2.0], (6, 1))
    trace = ControlLoop(
        env, Erratic([actions]), Lockstep(6), SimulatedLatencyClock(10.0), None, MIXED, limits=limits
    ).run(0)
    assert len(env.commands) == 40 and len(trace.ticks) == 10
    assert [command[0] for command in env.commands[:4]] == pytest.approx([0.2] * 4)
    assert [command[1] for command in env.commands[:4]] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert trace.ticks[1].action == pytest.approx((0.8, 2.0, 0.5, -2.0), abs=1e-6) and trace.limited == 0
    assert trace.tracked == 40 and measure([trace]).limited == 0.0


POSE = ActionSpec((), (0, 1, 2, 3), initial=(0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize("method", list(Interpolation))
def test_orientations_turn_by_slerp_and_within_their_limits(method: Interpolation) -> None:
    Rotation = pytest.importorskip("scipy.spatial.transform", reason="needs the extra 'eval'").Rotation
    turn = Orientation([0, 1, 2, 3], "quaternion", velocity=2.0, acceleration=40.0)  # type: ignore[arg-type]
    limits = MotionLimits(controller_hz=100.0, interpolation=method, orientations=[turn])
    space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    box = limits.box(ActionLimits.from_space(space, POSE), POSE)
    limiter = CommandLimiter(limits, POSE, box, POSE.initial_action({}), 10.0, {})
    goal = Rotation.from_rotvec([0.0, 0.0, 1.0])
    targets = [goal.as_quat(), -goal.as_quat(), np.zeros(4), Rotation.from_rotvec([2.5, 0.0, 0.0]).as_quat()]
    written = [POSE.initial_action({})]
    for target in [targets[0]] * 12 + targets[1:3] * 2 + [targets[3]] * 20:
        limiter.aim(target, None, MotionState.TRACK)
        for number in range(10):
            command, _ = limiter.command(number)
            limiter.sent(command)
            written.append(command)
        if target is targets[2]:  # no orientation at all: it stays where it is
            assert limiter.at_rest
    turns = [Rotation.from_quat(each) for each in written]
    vectors = np.array([(after * before.inv()).as_rotvec() for before, after in pairwise(turns)])
    assert np.linalg.norm(vectors, axis=1).max() <= 2.0 / 100 + 1e-6
    assert np.linalg.norm(np.diff(vectors, axis=0), axis=1).max() <= 40.0 / 100**2 + 1e-6
    assert (turns[120] * goal.inv()).magnitude() < 1e-5
    assert (turns[-1] * turns[0].inv()).magnitude() == pytest.approx(2.5)
    assert np.linalg.norm(written, axis=1) == pytest.approx(np.ones(len(written)), abs=1e-6)
    assert max(np.abs(after - before).max() for before, after in pairwise(written)) < 0.02  # the sign does not flip
    axes = vectors[1:40] / np.linalg.norm(vectors[1:40], axis=1, keepdims=True)
    assert np.abs(axes[:, 2] - 1).max() < 1e-6  # about one axis: slerp


def test_a_start_is_ramped_up() -> None:
    limits = MotionLimits(ramp_s=1.0)
    env = Arm(15)
    actions = np.tile([1.0, 0.0, 0.4, -2.0], (15, 1))
    ControlLoop(env, Erratic([actions]), Lockstep(15), SimulatedLatencyClock(10.0), None, MIXED, limits=limits).run(0)
    assert [command[0] for command in env.commands] == pytest.approx([*np.arange(1, 11) / 10, 1, 1, 1, 1, 1])


def test_a_robot_that_is_stopped_slows_down_within_its_limits() -> None:
    limits = MotionLimits(acceleration=[12.5, None, None, None])  # an eighth from one command to the next
    actions = np.tile([1.0, 0.0, 0.4, -2.0], (12, 1))
    env = Arm(100)
    policy = Erratic([actions, RuntimeError("broken")])
    clock = SimulatedLatencyClock(10.0)
    trace = ControlLoop(env, policy, Lockstep(12), clock, Guards(failure="stop"), MIXED, limits=limits).run(0)  # type: ignore[arg-type]
    speed = [command[0] for command in env.commands]
    assert speed == pytest.approx([*np.arange(1, 9) / 8, 1, 1, 1, 1, *np.arange(7, -1, -1) / 8])
    assert trace.stopped == "failure" and trace.limited == 7
    assert trace.tracked == 12  # what is sent while it slows down is not the policy's
    assert measure([trace]).limited == pytest.approx(7 / 12)


def test_an_interrupted_robot_slows_down_within_its_limits() -> None:
    limits = MotionLimits(acceleration=[12.5, None, None, None])

    class Interrupting(Arm):
        def step(self, action: Any) -> Any:
            said = super().step(action)
            if len(self.commands) == 12:
                os.kill(os.getpid(), signal.SIGINT)
            return said

    env = Interrupting(100)
    actions = np.tile([1.0, 0.0, 0.4, -2.0], (50, 1))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            clock = RealTimeClock(10.0, sleep=lambda seconds: None)
            ControlLoop(env, Erratic([actions]), Lockstep(50), clock, None, MIXED, limits=limits).run(0)
    finally:
        signal.signal(signal.SIGINT, handler)
    speed = [command[0] for command in env.commands]
    assert speed[11] == 1.0 and speed[-9:] == pytest.approx([*np.arange(8, -1, -1) / 8])


def test_commands_whose_time_has_gone_by_are_left_out_in_real_time() -> None:
    time_s = [0.0]

    def sleep(seconds: float) -> None:
        time_s[0] += seconds

    class SlowOnce(Arm):
        sent_at: list[float] = []  # noqa: RUF012

        def step(self, action: Any) -> Any:
            self.sent_at.append(time_s[0])
            time_s[0] += 0.05 if len(self.sent_at) == 6 else 0.0
            return super().step(action)

    env = SlowOnce(12)
    limits = MotionLimits(controller_hz=50.0, velocity=[None, None, 0.5, None])
    clock = RealTimeClock(10.0, monotonic=lambda: time_s[0], sleep=sleep)
    actions = np.array([[0.5, 0.0, 0.4 + 0.02 * k, -2.0] for k in range(9)])
    ControlLoop(env, Erratic([actions]), Lockstep(9), clock, None, MIXED, limits=limits).run(0)
    assert env.sent_at[:6] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert env.sent_at[6] == pytest.approx(0.15) and env.sent_at[7] == pytest.approx(0.16)  # two were left out
    assert np.abs(np.diff([command[2] for command in env.commands])).max() <= 0.5 / 50 + 1e-6


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"low": 1.0, "high": 0.0}, r"low=1 lies above high=0 in entry 0; exchange them"),
        ({"low": [0.0, 2.0], "high": [1.0, 1.0]}, "low=2 lies above high=1 in entry 1"),
        ({"low": [0.0], "high": [1.0, 1.0]}, "low has 1, high has 2 values"),
        ({"velocity": 0.0}, "velocity=0.0: expected a finite number, above 0"),
        ({"velocity": [1.0, -1.0]}, "velocity=-1.0"),
        ({"acceleration": float("nan")}, "acceleration=nan"),
        ({"step": "fast"}, "step='fast'"),
        ({"ramp_s": -1.0}, "ramp_s=-1.0"),
        ({"controller_hz": 0}, "controller_hz=0"),
        ({"interpolation": "magic"}, "expected one of linear, cubic, minimum_jerk"),
        ({"orientations": [Orientation([0, 1, 2]), Orientation([2, 3, 4])]}, "name an entry twice"),
        (
            {"orientations": [Orientation([0, 1, 2])], "velocity": [1.0, None, None]},
            "entry 0 belongs to an or",
        ),
    ],
)
def test_limits_that_contradict_each_other_are_refused_where_they_are_made(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        MotionLimits(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Orientation([0, 1, 2], "matrix"), "expected one of rotation_vector"),  # type: ignore[arg-type]
        (lambda: Orientation([0, 1, 2], "quaternion"), "expected 4 indices"),  # type: ignore[arg-type]
        (lambda: Orientation([0, 1, 2], velocity=-1.0), "velocity=-1.0"),
        (lambda: Workspace("hand", [0], [1.0], [0.0]), "low=1, high=0; low < high"),
        (lambda: Workspace("hand", [0], [0.0, 1.0], [1.0]), "low has 2 values for 1"),
        (lambda: Workspace("hand", [0], [0.0], [1.0], 0.0), "scale=0.0; expected a number that is not 0"),
    ],
)
def test_parts_of_limits_are_checked_where_they_are_made(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (
            MotionLimits(low=[0.1, None, None, None]),
            r"entry 0 is a delta, and 0 \(standstill\) lies outside",
        ),
        (MotionLimits(low=[None, None, 1.0, None]), "have nothing in common; nothing could be sent"),
        (
            MotionLimits(low=[None, None, 0.5, None], velocity=1.0),
            "the robot begins at 0.4 in entry 2, outside",
        ),
        (MotionLimits(velocity=[1.0, 1.0]), "velocity has 2 values; the action has 4 entries"),
        (MotionLimits(controller_hz=25.0), "controller_hz=25 is no multiple of the policy's 10 Hz; take 20"),
        (
            MotionLimits(acceleration=1e-5),
            "accelerate by 1e-07 .* float32 cannot tell apart at 0.9",
        ),
        (MotionLimits(controller_hz=5.0), "controller_hz=5 is no multiple of the policy's 10 Hz; take 10"),
        (MotionLimits(orientations=[Orientation([0, 1, 2])]), "entry 0 of an orientation is not in absolute_dims"),
        (MotionLimits(orientations=[Orientation([2, 3, 4])]), r"an orientation names \[2, 3, 4\] of 4 entries"),
        (MotionLimits(workspace=Workspace("hand", [2], [0.0], [1.0])), "expected delta entries"),
        (
            MotionLimits(workspace=Workspace("foot", [0], [0.0], [1.0])),
            "in the observation 'foot'",
        ),
        (
            MotionLimits(workspace=Workspace("hand", [0], [0.1], [1.0])),
            r"the robot begins at \[0.0\], outside",
        ),
    ],
)
def test_limits_that_do_not_fit_the_robot_are_refused_before_anything_is_sent(limits: MotionLimits, says: str) -> None:
    env = Arm(5)
    policy = Erratic([np.zeros((3, 4))])
    with pytest.raises(ValueError, match=says):
        ControlLoop(env, policy, Lockstep(3), SimulatedLatencyClock(10.0), None, MIXED, limits=limits).run(0)
    assert not env.commands


def test_limits_need_guards_and_floating_point_actions() -> None:
    from specpolicy.control.loop import ControlSetup

    with pytest.raises(ValueError, match="limits of motion and a watchdog belong to the safety filter"):
        ControlSetup(TickEnv(), Lockstep(4), SimulatedLatencyClock(), 2, SPEC, limits=MotionLimits(velocity=1.0))
    space = gymnasium.spaces.Box(-3, 3, (1,), np.int64)
    with pytest.raises(ValueError, match="actions of type int64 cannot be limited"):
        MotionLimits(velocity=1.0).box(ActionLimits.from_space(space, POSITION), POSITION)
    with pytest.raises(ValueError, match=r"velocity_dims=\[2\] must be among delta_dims=\[0, 1\]"):
        ActionSpec((0, 1), (2,), initial=(0.0,), velocity_dims=(2,))


def test_without_a_limit_that_matters_nothing_changes() -> None:
    def played(limits: MotionLimits | None) -> tuple[EpisodeTrace, TickEnv]:
        env = TickEnv(20)
        clock = SimulatedLatencyClock(20.0, Constant(0.1))
        return ControlLoop(env, TickPolicy(), Asynchronous(4, 2), clock, None, SPEC, limits=limits).run(0), env

    (trace, env), (limited, limited_env) = played(None), played(MotionLimits(velocity=1e6, acceleration=1e9))
    np.testing.assert_array_equal(env.actions, limited_env.actions)
    assert replace(trace, ticks=[], tracked=limited.tracked) == replace(limited, ticks=[]) and len(trace.ticks) == len(
        limited.ticks
    )


def test_settings_are_recorded_as_plain_data() -> None:
    limits = MotionLimits(velocity=2.0, orientations=[Orientation([0, 1, 2], velocity=1.0)])
    assert limits.to_dict()["velocity"] == 2.0 and limits.to_dict()["orientations"][0]["form"] == "rotation_vector"
    assert set(limits.to_dict()) == {"velocity", "orientations"}
