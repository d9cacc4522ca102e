"""The environments' control step against robosuite's own: the same bits, wherever it starts and whatever it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from specpolicy_envs.fast_stepping import advance, controlling, get_state, set_state
from specpolicy_envs.robosuite_env import RobosuiteEnv, observe
from specpolicy_envs.robosuite_tasks import SquareEnv
from specpolicy_envs.simulator import load_mujoco, load_robosuite

CONTROLLER = (
    "ee_pos ee_ori_mat ee_pos_vel ee_ori_vel joint_pos joint_vel J_pos J_ori J_full mass_matrix torques goal_pos"
    " goal_ori initial_joint new_update"
)


@pytest.fixture
def raw(env: RobosuiteEnv) -> Any:
    """robosuite's environment of the same task."""
    return load_robosuite().make(**env.task.robosuite_arguments())


def actions(env: RobosuiteEnv, steps: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Random ones, each held for a while: hands travel, mostly down into things, while fingers close, open and rest."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        if step % 3 == 0:
            action = rng.uniform(-1, 1, env.task.action_dim)
            action[2::7] = rng.uniform(-1, 0.3)
            action[6::7] = rng.choice([-1.0, -0.3, 0.0, 1.0], action[6::7].size)
            action[3:6] *= rng.integers(2)  # a goal without rotation is a case of its own
        yield action


def internals(robosuite: Any) -> list[NDArray[Any]]:
    """What robosuite's later code might read: controllers, torques, fingers, forces, everything that is simulated."""
    values = [robosuite.sim.data.ctrl, robosuite.sim.data.sensordata, robosuite.sim.data.qacc]
    for robot in robosuite.robots:
        values += [getattr(robot.controller, name) for name in CONTROLLER.split()]
        values += [robot.torques, robot.gripper.current_action]
    return [np.array(value) for value in values]


def assert_alike(env: RobosuiteEnv, raw: Any, played: list[tuple[dict[str, Any], bool]], expected: list[Any]) -> None:
    raw.sim.forward()
    for ours, theirs in zip(internals(env.robosuite), internals(raw), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for (observation, success), (observables, succeeds) in zip(played, expected, strict=True):
        assert success == succeeds
        for name in env.task.observations:
            np.testing.assert_array_equal(observation[name], observables["object-state" if name == "object" else name])


def play_both(env: RobosuiteEnv, raw: Any, steps: int, seed: int) -> None:
    played, expected = [], []
    for action in actions(env, steps, seed):
        raw.step(action)
        observation, *_, info = env.step(action)
        np.testing.assert_array_equal(env.state(), get_state(raw))
        played.append((observation, info["success"]))
        raw.sim.forward()
        expected.append((raw._get_observations(force_update=True), raw._check_success()))
    assert_alike(env, raw, played, expected)


@pytest.mark.slow
def test_every_step_is_robosuites(env: RobosuiteEnv, raw: Any) -> None:
    for seed in (1, 2):
        np.random.seed(seed)
        raw.reset()
        env.reset(seed=seed)
        assert controlling(env.robosuite, 25) is not None
        play_both(env, raw, 8, seed)
    state = env.state()
    np.random.seed(3)
    raw.reset()
    set_state(raw, state)
    env.reset(seed=3, options={"state": state})
    play_both(env, raw, 5, seed=3)
    # and robosuite's own step goes on from ours
    for action in actions(env, 2, seed=4):
        env.robosuite.step(action)
        raw.step(action)
    np.testing.assert_array_equal(env.state(), get_state(raw))


@pytest.mark.parametrize(
    "change", [{"uncouple_pos_ori": False}, {"type": "OSC_POSITION", "output_max": 0.05, "output_min": -0.05}]
)
def test_another_controller_is_left_to_robosuite(square: SquareEnv, change: dict[str, Any]) -> None:
    arguments = square.task.robosuite_arguments()
    arguments["controller_configs"][0].update(change)
    ours, theirs = (load_robosuite().make(**arguments) for _ in range(2))
    for environment in (ours, theirs):
        np.random.seed(0)
        environment.reset()
    assert controlling(ours, 25) is None
    for action in np.random.default_rng(0).uniform(-1, 1, (3, ours.action_dim)):
        advance(ours, action)
        theirs.step(action)
    np.testing.assert_array_equal(get_state(ours), get_state(theirs))


def test_a_step_that_breaks_off_leaves_sensors_and_dynamics_on(square: SquareEnv) -> None:
    square.reset(seed=0)
    sim = square.robosuite.sim
    with pytest.raises(ValueError, match="broadcast"):
        advance(square.robosuite, np.zeros(8))
    assert not sim.model.opt.disableflags & load_mujoco().mjtDisableBit.mjDSBL_SENSOR
    assert "forward" not in vars(sim)


def test_observing_leaves_the_simulation_as_it_was(env: RobosuiteEnv) -> None:
    env.reset(seed=0)
    data = env.robosuite.sim.data
    before = env.state()
    observe(env.robosuite, env.task.observations)
    assert env.robosuite.sim.data is data
    np.testing.assert_array_equal(env.state(), before)
