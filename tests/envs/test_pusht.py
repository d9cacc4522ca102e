"""PushT against its human demonstrations, and as an environment among the others."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from specpolicy_envs.pusht import KEYPOINTS, PushTEnv, PushTImageEnv, keypoints, load_gym_pusht

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gym_pusht") is None, reason="needs gym-pusht: pip install 'specpolicy[pusht]'"
)

HUMAN_SEED = 43
HUMAN_ACTIONS = [[396, 390], [396, 378], [395, 369], [393, 367], [393, 364], [393, 361], [393, 360]]
HUMAN_STATES = [
    [374.0, 370.0, 399.5562, 415.6957, 1.4302],
    [380.5048, 375.9134, 410.0704, 422.2751, 1.5919],
    [387.55, 378.7702, 418.0215, 428.6177, 1.7187],
    [391.4719, 376.1004, 421.6053, 432.1689, 1.7825],
    [392.7468, 372.3141, 422.6185, 433.3542, 1.8032],
    [392.9874, 368.8439, 422.8997, 433.719, 1.8097],
    [393.0184, 365.6002, 422.9338, 433.7659, 1.8105],
    [393.0142, 363.072, 422.9338, 433.7659, 1.8105],
]
"""The first steps of the human demonstration of seed 43, which begins with a push: finger x, y; T x, y, angle."""

RESTING = [222.99382, 381.59903, 3.0079994]
RESTING_KEYPOINTS = [
    *(201.8135, 293.59506, 283.59198, 374.6524, 162.8094, 391.09332, 219.8596, 356.24698, 220.57481, 258.00412),
    *(179.96213, 354.2294, 258.24466, 343.83762, 231.29512, 317.05505, 199.8886, 386.4198),
]
"""Where the T and its keypoints are at the beginning of the demonstration of seed 0."""

MARK = (256.0, 256.0, np.pi / 4)


@pytest.fixture(scope="module")
def pusht() -> PushTEnv:
    return PushTEnv()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


def pose(env: PushTEnv) -> NDArray[np.float64]:
    """As the recordings have it: the angle within one turn."""
    state = env.state()[:5]
    state[4] %= 2 * np.pi
    return state


def chase(env: PushTEnv, steps: int) -> dict[str, Any]:
    """Drive the finger back and forth through the T, so that there is contact."""
    for k in range(steps):
        centre = np.array(env.pusht.block.position)
        observation, *_ = env.step(np.clip(centre + (40, 25) * np.array([np.sin(k), np.cos(2 * k)]), 0, 512))
    return observation


def test_spaces(pusht: PushTEnv) -> None:
    space: Any = pusht.observation_space
    assert [(name, box.shape, box.dtype) for name, box in space.items()] == [
        ("agent_pos", (2,), np.float64),
        ("keypoints", (18,), np.float64),
    ]
    assert pusht.action_space == gym.spaces.Box(0, 512, (2,), np.float32)
    assert gym.spec("specpolicy/PushT-v0").max_episode_steps == 300
    assert PushTEnv.metadata["render_fps"] == 10
    observation, _ = pusht.reset(seed=0)
    assert list(observation) == list(space) and observation in space


def test_gymnasium_finds_nothing_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*A Box observation space (min|max)imum value is -?infinity")
        # actions are places in the plane, as in the recordings
        warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normalized space")
        check_env(PushTEnv(render_mode="rgb_array"), skip_render_check=True)


def test_the_keypoints_are_those_of_the_recordings() -> None:
    np.testing.assert_allclose(keypoints(np.array(RESTING)), RESTING_KEYPOINTS, atol=5e-5)
    np.testing.assert_array_equal(keypoints(np.zeros(3)).reshape(9, 2), KEYPOINTS)
    np.testing.assert_allclose(
        keypoints(np.array([5.0, 7.0, np.pi / 2]))[:2], [5 - KEYPOINTS[0, 1], 7 + KEYPOINTS[0, 0]]
    )


def test_human_actions_bring_the_recorded_states_about(pusht: PushTEnv) -> None:
    observation, _ = pusht.reset(seed=HUMAN_SEED)
    for action, state in zip([*HUMAN_ACTIONS, None], HUMAN_STATES, strict=True):
        np.testing.assert_allclose(pose(pusht), state, atol=1e-4)
        np.testing.assert_array_equal(observation["agent_pos"], pusht.state()[:2])
        np.testing.assert_array_equal(observation["keypoints"], keypoints(pusht.state()[2:5]))
        if action is not None:
            observation, *_ = pusht.step(action)


def test_a_seed_does_not_depend_on_what_was_played_before(pusht: PushTEnv) -> None:
    first, _ = pusht.reset(seed=7)
    state, later = pusht.state(), chase(pusht, 15)
    assert np.linalg.norm(pusht.state()[2:4] - state[2:4]) > 20, "the T was pushed"
    pusht.reset(seed=8)
    chase(pusht, 12)
    np.random.seed(123)
    again, _ = pusht.reset(seed=7)
    assert same(first, again)
    assert np.array_equal(state, pusht.state())
    assert same(later, chase(pusht, 15))


def test_seeds_differ_and_go_on_without_one(pusht: PushTEnv) -> None:
    def states(*seeds: int | None) -> list[bytes]:
        return [(pusht.reset(seed=seed), pusht.state())[1].tobytes() for seed in seeds]

    assert len(set(states(0, 1, 2**32 - 1, 2**32, 2**40))) == 5
    assert states(7, None, None) == states(7, None, None)
    assert len(set(states(7, None, None, 8, None, None))) == 6


def test_the_global_generator_is_left_alone(pusht: PushTEnv) -> None:
    np.random.seed(5)
    expected = np.random.random(4)
    np.random.seed(5)
    pusht.reset(seed=1)
    pusht.reset()
    chase(pusht, 2)
    assert np.array_equal(np.random.random(4), expected)


def test_another_process_plays_the_same_episode_and_prints_nothing(pusht: PushTEnv) -> None:
    code = (
        "import gymnasium as gym, numpy as np\n"
        "env = gym.make('specpolicy_envs:specpolicy/PushT-v0')\n"
        "env.reset(seed=3)\n"
        f"for action in {HUMAN_ACTIONS}: env.step(np.array(action, np.float32))\n"
        f"env.reset(seed={HUMAN_SEED})\n"
        f"for action in {HUMAN_ACTIONS}: env.step(np.array(action, np.float32))\n"
        "print(env.unwrapped.state().tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=True)
    pusht.reset(seed=HUMAN_SEED)
    for action in HUMAN_ACTIONS:
        pusht.step(action)
    assert (done.stdout.strip(), done.stderr) == (pusht.state().tobytes().hex(), "")


def test_the_sum_of_rewards_is_the_best_coverage(pusht: PushTEnv) -> None:
    x, y, angle = MARK
    _, info = pusht.reset(seed=0, options={"state": [100, 256, x - 30, y, angle]})
    assert info["coverage"] > 0.3
    rewards, coverages = [], []
    for target in [(x, y), (x - 60, y), (x + 120, y), (x + 120, y + 120), (x, y + 120), (x, y - 200)] * 2:
        for _ in range(4):
            _, reward, *_, info = pusht.step(target)
            rewards.append(reward)
            coverages.append(info["coverage"])
    assert min(np.diff(coverages)) < -0.05 and max(np.diff(coverages)) > 0.01, "it got worse and better"
    assert min(rewards) == 0
    assert sum(rewards) == pytest.approx(max(coverages) / 0.95, abs=1e-12)
    pusht.reset(seed=0)
    assert pusht.step([256, 256])[1] > 0, "each episode counts for itself"


@pytest.mark.parametrize(("shift", "succeeds"), [(0.0, True), (0.4, True), (4.0, False)])
def test_success_ends_the_episode(pusht: PushTEnv, shift: float, succeeds: bool) -> None:
    x, y, angle = MARK
    _, info = pusht.reset(options={"state": [50, 50, x + shift, y, angle]})
    assert info["success"] is succeeds
    _, reward, terminated, truncated, info = pusht.step([50, 50])
    assert (terminated, truncated, info["success"]) == (succeeds, False, succeeds)
    assert reward == pytest.approx(min(1.0, info["coverage"] / 0.95))
    assert (reward == 1.0) is succeeds


def test_a_turned_mark_is_covered_less(pusht: PushTEnv) -> None:
    x, y, angle = MARK
    coverage = [
        pusht.reset(options={"state": [50, 50, x, y, angle + turn]})[1]["coverage"]
        for turn in (0, 0.05, 0.3, 2 * np.pi)
    ]
    assert 1 == pytest.approx(coverage[0]) == coverage[3] > coverage[1] > coverage[2] > 0.3


def test_an_initial_state_comes_back_and_goes_on_alike(pusht: PushTEnv) -> None:
    for moving in (0, 3):
        pusht.reset(seed=11)
        for _ in range(moving):
            pusht.step([20, 20])  # away from the T: contact forces are no part of a state
        state = pusht.state()
        for action in ([60, 60], [90, 30], [120, 90]):
            pusht.step(action)
        later = pusht.state()
        pusht.reset(seed=2, options={"state": state})
        np.testing.assert_allclose(pusht.state(), state, atol=1e-11)
        for action in ([60, 60], [90, 30], [120, 90]):
            pusht.step(action)
        np.testing.assert_allclose(pusht.state(), later, atol=1e-9)
    assert np.abs(state[5:7]).min() > 1, "the finger was moving"


def test_a_recorded_state_begins_at_rest(pusht: PushTEnv) -> None:
    observation, _ = pusht.reset(options={"state": np.float32(HUMAN_STATES[3])})
    np.testing.assert_allclose(pusht.state(), [*HUMAN_STATES[3], 0, 0, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(observation["agent_pos"], HUMAN_STATES[3][:2], atol=1e-4)


def test_made_by_gymnasium_an_episode_is_truncated() -> None:
    env = gym.make("specpolicy_envs:specpolicy/PushT-v0", max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(np.full(2, 99, np.float32))[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_an_action_beyond_the_box_is_clipped(pusht: PushTEnv) -> None:
    outcomes = []
    for action in ([0, 512], [-100, 9999]):
        pusht.reset(seed=0)
        pusht.step(action)
        outcomes.append(pusht.state())
    np.testing.assert_array_equal(*outcomes)


def test_bad_actions_are_refused(pusht: PushTEnv) -> None:
    with pytest.raises(ResetNeeded):
        PushTEnv().step([0, 0])
    pusht.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        pusht.step([[0, 0]])
    with pytest.raises(ValueError, match="not finite"):
        pusht.step([np.nan, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": np.zeros(4)}, r"shape \(5,\): agent x, agent y.*this one has \(4,\)"),
        ({"state": np.full(5, np.inf)}, "not finite"),
        ({"state": "demo_0"}, "array of numbers"),
        ({"states": np.zeros(5)}, "unknown reset options.*'states'.*'state'"),
    ],
)
def test_bad_reset_options_are_refused(pusht: PushTEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pusht.reset(options=options)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"render_mode": "human"}, "rgb_array"), ({"image_size": 0}, "positive number")]
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PushTEnv(**arguments)


def test_an_image_shows_the_finger_where_it_is_and_leaves_the_physics_alone(pusht: PushTEnv) -> None:
    seen = PushTEnv(render_mode="rgb_array", image_size=128)
    for env in (seen, pusht):
        env.reset(seed=0, options={"state": [400, 80, 150, 300, 0.0]})
        for _ in range(3):
            env.step([400, 120])
            seen.render()
    np.testing.assert_array_equal(seen.state(), pusht.state())
    image = seen.render()
    assert image is not None and image.shape == (128, 128, 3) and image.dtype == np.uint8
    red, _, blue = np.moveaxis(image.astype(int), 2, 0)
    rows, columns = np.nonzero(blue - red > 100)
    finger = seen.state()[:2] / 4
    np.testing.assert_allclose([columns.mean(), rows.mean()], finger, atol=1.5)


def test_without_a_render_mode_there_is_no_image(pusht: PushTEnv) -> None:
    pusht.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert pusht.render() is None


def test_a_missing_gym_pusht_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(ImportError, match=r'pip install "specpolicy\[pusht\]"'):
        load_gym_pusht.__wrapped__()


@pytest.fixture(scope="module")
def camera() -> PushTImageEnv:
    return PushTImageEnv()


def test_images_are_those_of_gym_pusht(camera: PushTImageEnv) -> None:
    """Which are those of the demonstrations, whose environment drew them the same way."""
    observation, _ = camera.reset(seed=3)
    camera.pusht.render_mode = "rgb_array"
    for action in ([100.0, 400.0], [300.0, 100.0], [250.0, 250.0]):
        assert observation["image"].dtype == np.uint8 and observation["image"].shape == (96, 96, 3)
        np.testing.assert_array_equal(observation["image"], camera.pusht._render())
        observation, *_ = camera.step(np.array(action))


def test_an_image_shows_where_the_finger_is(camera: PushTImageEnv) -> None:
    for state in (HUMAN_STATES[0], HUMAN_STATES[-1], [100.0, 50.0, *RESTING]):
        observation, _ = camera.reset(seed=0, options={"state": state})
        blue = (np.abs(observation["image"].astype(int) - [78, 126, 255]).sum(axis=2) < 100).nonzero()
        centre = (np.array([blue[1].mean(), blue[0].mean()]) + 0.5) * 512 / 96
        np.testing.assert_allclose(centre, state[:2], atol=3)
        np.testing.assert_allclose(observation["agent_pos"], state[:2])


def test_a_restored_state_is_drawn_at_once(camera: PushTImageEnv) -> None:
    camera.reset(seed=1)
    restored, _ = camera.reset(seed=0, options={"state": [100.0, 50.0, *RESTING]})
    later, *_ = camera.step(np.array([100.0, 50.0]))  # nothing moves
    np.testing.assert_array_equal(restored["image"], later["image"])


def test_the_camera_sees_the_same_episode_as_the_keypoints(camera: PushTImageEnv, pusht: PushTEnv) -> None:
    camera.reset(seed=HUMAN_SEED)
    pusht.reset(seed=HUMAN_SEED)
    for action in HUMAN_ACTIONS:
        seen, reward, *_ = camera.step(np.array(action))
        known, other, *_ = pusht.step(np.array(action))
        assert reward == other
        np.testing.assert_array_equal(seen["agent_pos"], known["agent_pos"])
    np.testing.assert_array_equal(camera.state(), pusht.state())


def test_the_camera_is_an_environment() -> None:
    env = gym.make("specpolicy/PushTImage-v0", camera_size=32)
    assert env.observation_space["image"].shape == (32, 32, 3)  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*A Box observation space (min|max)imum value is -?infinity")
        warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normalized space")
        check_env(PushTImageEnv(render_mode="rgb_array"), skip_render_check=True)
    with pytest.raises(ValueError, match="camera_size must be a positive number of pixels, not 0"):
        PushTImageEnv(camera_size=0)
