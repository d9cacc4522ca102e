from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from specpolicy_envs.robosuite_env import RobosuiteEnv
from specpolicy_envs.robosuite_tasks import SquareEnv
from specpolicy_envs.simulator import load_robosuite

OBJECTS = {"NutAssemblySquare": 14, "ToolHang": 44, "TwoArmTransport": 41}
DIMENSIONS = {"object": 14, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


def nut_over_peg(env: SquareEnv) -> NDArray[np.float64]:
    """An initial state, but with the nut around its peg."""
    env.reset(seed=0)
    sim = env.robosuite.sim
    peg = sim.data.body_xpos[sim.model.body_name2id("peg1")]
    begin, _ = sim.model.get_joint_qpos_addr(env.robosuite.nuts[0].joints[0])
    state = env.state()
    state[1 + begin : 1 + begin + 3] = [peg[0], peg[1], env.robosuite.table_offset[2] + 0.02]
    return state


def test_the_spaces_are_those_of_the_demonstrations(env: RobosuiteEnv) -> None:
    space: Any = env.observation_space
    dimensions = {"object": OBJECTS[env.task.name]}
    for arm in range(len(env.task.robots)):
        dimensions |= {f"robot{arm}_eef_pos": 3, f"robot{arm}_eef_quat": 4, f"robot{arm}_gripper_qpos": 2}
    assert {name: box.shape for name, box in space.items()} == {name: (dim,) for name, dim in dimensions.items()}
    assert list(space) == list(dimensions)
    assert all(box.dtype == np.float64 for box in space.values())
    assert env.action_space == gym.spaces.Box(-1, 1, (7 * len(env.task.robots),), np.float32)
    observation, _ = env.reset(seed=0)
    assert list(observation) == list(dimensions)
    assert observation in space


def test_gymnasium_finds_nothing_wrong(simulator: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # positions are unbounded: the nut may fall off the table
        warnings.filterwarnings("ignore", message=".*A Box observation space (min|max)imum value is -?infinity")
        check_env(SquareEnv(), skip_render_check=True)


def test_physics_are_those_of_robosuite_bit_for_bit(square: SquareEnv) -> None:
    raw = load_robosuite().make(**square.task.robosuite_arguments())
    np.random.seed(11)
    raw.reset()
    square.reset(seed=11)
    rng = np.random.default_rng(0)
    contacts = 0
    for _ in range(80):
        action = rng.uniform(-1, 1, 7)
        action[2] -= 0.5  # down, so that the gripper meets the table
        raw.step(np.clip(action, -1, 1))
        square.step(action)
        contacts = max(contacts, raw.sim.data.ncon)
        assert np.array_equal(raw.sim.get_state().flatten(), square.state())
    assert contacts > 10


def test_observations_describe_the_state_they_come_with(square: SquareEnv) -> None:
    square.reset(seed=2)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 7)):
        observation, *_ = square.step(action)
    robosuite = square.robosuite
    nut = robosuite.sim.model.body_name2id("SquareNut_main")
    position, quaternion = robosuite.sim.data.body_xpos[nut], robosuite.sim.data.body_xquat[nut]
    np.testing.assert_array_equal(observation["object"][:3], position)
    np.testing.assert_array_equal(observation["object"][3:7], quaternion[[1, 2, 3, 0]])
    np.testing.assert_array_equal(
        observation["robot0_eef_pos"], robosuite.sim.data.site_xpos[robosuite.robots[0].eef_site_id]
    )
    restored, _ = square.reset(seed=5, options={"state": square.state()})
    for name in DIMENSIONS:
        np.testing.assert_array_equal(restored[name], observation[name])


def test_a_state_comes_back_and_goes_on_alike(env: RobosuiteEnv) -> None:
    first, _ = env.reset(seed=1)
    state = env.state()
    actions = np.random.default_rng(0).uniform(-1, 1, (10, env.task.action_dim))
    for action in actions:
        env.step(action)
    later = env.state()
    env.reset(seed=2)
    restored, _ = env.reset(seed=1, options={"state": state})
    assert np.array_equal(env.state(), state)
    for name in first:
        np.testing.assert_array_equal(restored[name], first[name])
    for action in actions:
        env.step(action)
    np.testing.assert_array_equal(env.state(), later)


def test_a_restored_arm_stays_where_it_was_put(square: SquareEnv) -> None:
    square.reset(seed=1)
    for _ in range(15):
        observation, *_ = square.step([1, 0.5, -0.5, 0, 0, 0.5, -1])
    square.reset(seed=2, options={"state": square.state()})
    for _ in range(10):
        after, *_ = square.step(np.zeros(7))
    # it was moving at some 20 cm/s; pulled back to its initial pose it would be off by 20 cm
    assert np.linalg.norm(after["robot0_eef_pos"] - observation["robot0_eef_pos"]) < 0.05


def test_success_ends_the_episode_with_reward_one(square: SquareEnv) -> None:
    state = nut_over_peg(square)
    _, info = square.reset(options={"state": state})
    assert info == {"success": True}
    _, reward, terminated, truncated, info = square.step(np.zeros(7))
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"success": True})


def test_without_success_there_is_no_reward(square: SquareEnv) -> None:
    _, info = square.reset(seed=0)
    assert info == {"success": False}
    _, reward, terminated, truncated, info = square.step(np.zeros(7))
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"success": False})


def test_made_by_gymnasium_an_episode_is_truncated(simulator: None) -> None:
    env = gym.make("specpolicy_envs:specpolicy/Square-v0", max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(7, np.float32))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_an_action_beyond_the_box_is_clipped(square: SquareEnv) -> None:
    outcomes = []
    for scale in (1, 10):
        square.reset(seed=0)
        square.step(scale * np.array([1, -1, 1, 1, -1, 1, -1]))
        outcomes.append(square.state())
    np.testing.assert_array_equal(outcomes[0], outcomes[1])


def test_a_bad_action_is_refused(square: SquareEnv) -> None:
    square.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(7,\)"):
        square.step(np.zeros((1, 7)))
    with pytest.raises(ValueError, match="not finite"):
        square.step(np.full(7, np.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": np.zeros(44)}, r"shape \(45,\).*23 positions, 21 velocities"),
        ({"state": np.full(45, np.nan)}, "not finite"),
        ({"state": "demo_0"}, "array of numbers"),
        ({"states": np.zeros(45)}, "unknown reset options.*'states'.*'state'"),
    ],
)
def test_bad_reset_options_are_refused(square: SquareEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        square.reset(options=options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"render_mode": "human"}, "rgb_array"),
        ({"image_size": 0}, "positive number of pixels"),
        ({"camera": "nowhere"}, "has no camera 'nowhere'; it has .*agentview"),
    ],
)
def test_bad_arguments_are_refused(simulator: None, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SquareEnv(**arguments)


def test_a_step_before_the_first_reset_is_refused(simulator: None) -> None:
    with pytest.raises(ResetNeeded):
        SquareEnv().step(np.zeros(7))
