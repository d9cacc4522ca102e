"""PushT's replay buffer into demonstrations: nothing lost, nothing shifted, and clear words about a wrong file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.config import compose
from specpolicy.datasets.demonstrations import read_demonstrations
from specpolicy.datasets.pusht import ReplayBufferError, convert_pusht

LENGTHS = (5, 3, 7)


def replay_buffer() -> dict[str, NDArray[Any]]:
    """Three episodes; the second does not begin where the environment's seed 1 does."""
    rng = np.random.default_rng(0)
    n = sum(LENGTHS)
    state = rng.uniform(0, 512, (n, 5)).astype(np.float32)
    for seed, begin in ((0, 0), (2, sum(LENGTHS[:2]))):
        state[begin, :2] = np.random.RandomState(seed).randint(50, 450, 2)
    return {
        "data/action": rng.uniform(0, 512, (n, 2)).astype(np.float32),
        "data/state": state,
        "data/keypoint": rng.uniform(0, 512, (n, 9, 2)).astype(np.float32),
        "data/img": np.zeros((n, 4, 4, 3), np.uint8),
        "meta/episode_ends": np.cumsum(LENGTHS),
    }


def write_hdf5(path: Path, arrays: dict[str, NDArray[Any]]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def test_every_step_keeps_its_place(tmp_path: Path) -> None:
    buffer = replay_buffer()
    path = tmp_path / "new folder" / "demonstrations.hdf5"
    assert convert_pusht(write_hdf5(tmp_path / "buffer.hdf5", buffer), path) == 3
    with h5py.File(path) as file:
        demos = [file[f"data/demo_{i}"] for i in range(3)]
        assert [len(demo["actions"]) for demo in demos] == list(LENGTHS)
        for name, key in (("actions", "action"), ("states", "state")):
            np.testing.assert_array_equal(np.concatenate([demo[name] for demo in demos]), buffer[f"data/{key}"])
        agent = np.concatenate([demo["obs/agent_pos"] for demo in demos])
        np.testing.assert_array_equal(agent, buffer["data/state"][:, :2])
        keypoints = np.concatenate([demo["obs/keypoints"] for demo in demos])
        np.testing.assert_array_equal(keypoints.reshape(-1, 9, 2), buffer["data/keypoint"])
        assert [demo["dones"][:].tolist() for demo in demos] == [[0] * (n - 1) + [1] for n in LENGTHS]
        assert [demo.attrs.get("seed") for demo in demos] == [0, None, 2]
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == compose("convert", []).task.env


def test_images_come_along_as_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = replay_buffer()
    images = np.random.default_rng(1).integers(256, size=(sum(LENGTHS), 4, 6, 3), dtype=np.uint8)
    for name, stored in (("bytes", images), ("numbers", images.astype(np.float32))):  # as published: floats to 255
        source = write_hdf5(tmp_path / f"{name}.hdf5", buffer | {"data/img": stored})
        assert main(["convert", "task=pusht_image", f"source={source}", f"out={tmp_path / 'out.hdf5'}"]) == 0
        with h5py.File(tmp_path / "out.hdf5") as file:
            demos = [file[f"data/demo_{number}"] for number in range(3)]
            assert all(demo["obs/image"].dtype == np.uint8 for demo in demos)
            np.testing.assert_array_equal(np.concatenate([demo["obs/image"] for demo in demos]), images)
            told = json.loads(file["data"].attrs["env_args"])["env_name"]
            assert told == compose("train", ["task=pusht_image"]).task.env
    capsys.readouterr()
    for change, says in (
        ({"data/img": None}, "lacks data/img"),
        ({"data/img": images[1:]}, r"data/img has shape \(14, 4, 6, 3\); expected \(15, height, width, 3\)"),
    ):
        arrays = {name: values for name, values in (buffer | change).items() if values is not None}  # type: ignore[operator]
        with pytest.raises(ReplayBufferError, match=says):
            convert_pusht(write_hdf5(tmp_path / "wrong.hdf5", arrays), tmp_path / "none.hdf5", images=True)


@pytest.mark.skipif(importlib.util.find_spec("zarr") is None, reason="needs zarr: pip install 'specpolicy[pusht]'")
def test_the_published_form_gives_the_same_file(tmp_path: Path) -> None:
    import zarr

    buffer = replay_buffer()
    group = zarr.open_group(str(tmp_path / "buffer.zarr"), mode="w", zarr_format=2)
    for name, values in buffer.items():
        group.create_array(name, data=values)
    convert_pusht(tmp_path / "buffer.zarr", tmp_path / "from_zarr.hdf5")
    convert_pusht(write_hdf5(tmp_path / "buffer.hdf5", buffer), tmp_path / "from_hdf5.hdf5")
    assert (tmp_path / "from_zarr.hdf5").read_bytes() == (tmp_path / "from_hdf5.hdf5").read_bytes()
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ReplayBufferError, match=r"empty\.zarr is no zarr folder"):
        convert_pusht(tmp_path / "empty.zarr", tmp_path / "out.hdf5")


def test_the_command_writes_what_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_hdf5(tmp_path / "buffer.hdf5", replay_buffer()), tmp_path / "demonstrations.hdf5"
    assert main(["convert", f"source={source}", f"out={out}"]) == 0
    assert f"3 demonstrations in {out}" in capsys.readouterr().out
    task = compose("train", ["task=pusht"]).task
    data = read_demonstrations(out, dict(task.observations), validation_demos=1)
    assert [(e.observations.shape[1], e.actions.shape[1]) for e in data.train] == [(20, task.action_dim)] * 2
    assert compose("convert", []).out == task.dataset


@pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="needs gym-pusht")
@pytest.mark.parametrize("name", ["pusht", "pusht_image"])
def test_the_task_describes_the_environment(name: str) -> None:
    task = compose("rollout", [f"task={name}"]).task
    env = gym.make(task.env)
    space: Any = env.observation_space
    shapes = {key: [size] if isinstance(size, int) else list(size) for key, size in task.observations.items()}
    assert {key: list(box.shape) for key, box in space.items()} == shapes
    assert env.action_space.shape == (task.action_dim,)
    assert env.metadata["render_fps"] == task.control_hz


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data/keypoint": None}, r"lacks \['data/keypoint'\]"),
        ({"data/state": np.zeros((15, 4))}, r"data/state has rows of shape \(4,\), not \(5,\)"),
        ({"data/action": np.zeros((14, 2))}, "must grow and end at the number of rows .*'action': 14"),
        ({"meta/episode_ends": np.array([5, 5, 15])}, r"must grow .*\[5, 5, 15\]"),
        ({"meta/episode_ends": np.array([], dtype=int)}, "must grow"),
    ],
)
def test_a_wrong_buffer_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    arrays = {name: values for name, values in (replay_buffer() | change).items() if values is not None}
    with pytest.raises(ReplayBufferError, match=says):
        convert_pusht(write_hdf5(tmp_path / "buffer.hdf5", arrays), tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()


def test_mistakes_are_answered_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_bytes(b"PK")
    for arguments, says in (
        (["source=/nowhere"], "nothing at /nowhere"),
        ([f"source={tmp_path}/archive.zip"], "unpack an archive first"),
        (["task=square"], "no converter for task 'square'"),
    ):
        assert main(["convert", *arguments, f"out={tmp_path}/out.hdf5"]) == EXIT_USER_ERROR
        error = capsys.readouterr().err
        assert error.startswith("error: ") and says in error and error.count("\n") == 1
