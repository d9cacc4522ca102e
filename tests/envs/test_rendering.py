from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from specpolicy_envs import rendering
from specpolicy_envs.rendering import Camera, RenderingUnavailable, rendering_available, rendering_problem
from specpolicy_envs.robosuite_tasks import SquareEnv
from specpolicy_envs.simulator import load_mujoco

PAINTED = """
<mujoco>
  <asset>
    <texture name="paint" type="2d" builtin="flat" rgb1="{0}" rgb2="{0}" width="8" height="8"/>
    <material name="paint" texture="paint"/>
  </asset>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="above" pos="0 0 2"/>
    <geom type="plane" size="3 3 0.1" material="paint" group="1"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def square_seen(opengl: None) -> SquareEnv:
    return SquareEnv(render_mode="rgb_array", image_size=64)


def test_an_image_is_right_side_up(square_seen: SquareEnv) -> None:
    square_seen.reset(seed=0)
    nut = square_seen.robosuite.sim.model.get_joint_qpos_addr(square_seen.robosuite.nuts[0].joints[0])[0]
    rows = []
    background = square_seen.state()
    background[1 + nut + 2] = -5.0  # below the floor
    square_seen.reset(options={"state": background})
    empty = square_seen.render()
    assert empty is not None
    assert empty.shape == (64, 64, 3)
    assert empty.dtype == np.uint8
    assert empty.std() > 20  # neither black nor blank
    for height in (0.85, 1.05):
        state = background.copy()
        state[1 + nut : 1 + nut + 3] = [0.1, 0.0, height]
        square_seen.reset(options={"state": state})
        image = square_seen.render()
        assert image is not None
        changed = np.abs(image.astype(int) - empty).max(axis=2) > 30
        rows.append(np.nonzero(changed)[0].mean())
    assert rows[1] < rows[0] - 3  # higher in the world is nearer to row 0


def test_the_same_state_gives_the_same_image(square_seen: SquareEnv) -> None:
    square_seen.reset(seed=0)
    first = square_seen.render()
    square_seen.close()
    square_seen.reset(seed=1)
    square_seen.render()
    square_seen.reset(seed=0)
    np.testing.assert_array_equal(square_seen.render(), first)


def test_rendering_leaves_the_physics_alone(square_seen: SquareEnv, square: SquareEnv) -> None:
    for env in (square_seen, square):
        env.reset(seed=0)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 7)):
            env.step(action)
            if env is square_seen:
                env.render()
    np.testing.assert_array_equal(square_seen.state(), square.state())


def test_another_camera_sees_another_image(square_seen: SquareEnv) -> None:
    other = SquareEnv(render_mode="rgb_array", image_size=64, camera="frontview")
    for env in (square_seen, other):
        env.reset(seed=0)
    first, second = square_seen.render(), other.render()
    assert first is not None
    assert second is not None
    assert not np.array_equal(first, second)


@pytest.mark.usefixtures("opengl")
def test_another_model_is_seen_with_its_own_textures() -> None:
    mujoco = load_mujoco()
    camera = Camera("above", 16)
    colours = []
    for colour in ("1 0 0", "0 0 1"):
        model = mujoco.MjModel.from_xml_string(PAINTED.format(colour))
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        colours.append(int(camera.image(model, data)[8, 8].argmax()))
    assert colours == [0, 2]


@pytest.mark.usefixtures("opengl")
def test_an_unclosed_environment_ends_quietly() -> None:
    code = (
        "import gymnasium as gym\n"
        "env = gym.make('specpolicy_envs:specpolicy/Square-v0', render_mode='rgb_array')\n"
        "env.reset(seed=0)\n"
        "print(env.render().shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(256, 256, 3)\n", "")


def test_without_a_render_mode_there_is_no_image(square: SquareEnv) -> None:
    square.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert square.render() is None


@pytest.fixture
def fresh_probes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    rendering._failure.cache_clear()
    yield
    rendering._failure.cache_clear()


@pytest.mark.usefixtures("simulator", "fresh_probes")
def test_a_backend_that_does_not_work_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_PROBE", "raise RuntimeError('the driver is too old')")
    env = SquareEnv(render_mode="rgb_array")
    env.reset(seed=0)
    message = r"RuntimeError: the driver is too old.*libosmesa6.*MUJOCO_GL"
    with pytest.raises(RenderingUnavailable, match=message) as error:
        env.render()
    assert "\n" not in str(error.value)
    observation, *_ = env.step(np.zeros(7))  # the episode goes on
    assert observation in env.observation_space


@pytest.mark.usefixtures("fresh_probes")
def test_a_crash_of_the_driver_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_PROBE", "import os; os.abort()")
    assert not rendering_available()
    assert "exit status" in (rendering_problem() or "")


def test_an_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "crayon")
    assert "MUJOCO_GL=crayon is not one of" in (rendering_problem() or "")


def test_cameras_among_the_observations(opengl: None) -> None:
    images = {"agentview_image": (48, 64, 3), "robot0_eye_in_hand_image": (3, 32, 32)}
    env = SquareEnv(images=images)
    observation, _ = env.reset(seed=0)
    assert list(observation)[-2:] == list(images) and env.observation_space.contains(observation)
    assert observation["agentview_image"].std() > 20 and observation["robot0_eye_in_hand_image"].shape == (3, 32, 32)
    front = observation["agentview_image"]
    for _ in range(3):
        observation, *_ = env.step(np.array([0, 1, 0, 0, 0, 0, 1], np.float32))
    assert (observation["agentview_image"] != front).mean() > 0.005
    square = SquareEnv(render_mode="rgb_array", image_size=64)
    square.reset(seed=0)
    shown = square.render()
    other, _ = SquareEnv(images={"agentview_image": (3, 64, 64)}).reset(seed=0)
    assert shown is not None
    np.testing.assert_array_equal(other["agentview_image"], shown.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({"agentview": (84, 84, 3)}, "names no camera; expected <camera>_image"),
        ({"wall_image": (84, 84, 3)}, "has no camera 'wall'; it has frontview"),
        ({"agentview_image": (84, 84)}, r"expected \(height, width, 3\)"),
        ({"agentview_image": (84, 84, 1)}, r"expected \(height, width, 3\)"),
    ],
)
def test_images_that_cannot_be(images: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SquareEnv(images=images)
