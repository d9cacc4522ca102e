"""The HDF5 layout: what is written can be read, is checked, and is the same bytes every time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from specpolicy.datasets.robomimic import Episode, EpisodeError, read_attributes, read_episodes, write_demonstrations

ENV_ARGS = {"env_name": "Reach", "env_version": "1", "type": 2, "env_kwargs": {"arms": 2}}


def episode(seed: int = 0, steps: int = 30, **changes: Any) -> Episode:
    rng = np.random.default_rng(seed)
    arrays = {
        "actions": rng.normal(size=(steps, 2)).astype(np.float32),
        "observations": {"object": rng.normal(size=(steps, 3)), "image": np.full((steps, 96, 96, 3), seed, np.uint8)},
        "others": {"dones": np.arange(steps)},
        "attributes": {"seed": seed, "model_file": "<mujoco/>" * 10_000},
    }
    return Episode(**(arrays | changes))


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "d.hdf5"
    following = {"object": np.zeros((30, 3)), "image": np.zeros((30, 2), np.uint8)}
    written = [episode(seed, next_observations=following) for seed in range(12)]
    assert write_demonstrations(path, iter(written), ENV_ARGS, {"origin": "here"}) == 12
    attributes = read_attributes(path)
    assert json.loads(str(attributes["env_args"])) == ENV_ARGS
    assert (attributes["total"], attributes["origin"]) == (360, "here")
    for before, after in zip(written, read_episodes(path), strict=True):
        assert before.attributes == after.attributes
        assert before.arrays().keys() == after.arrays().keys()
        for name, values in before.arrays().items():
            np.testing.assert_array_equal(values, after.arrays()[name], name)
            assert values.dtype == after.arrays()[name].dtype
    with h5py.File(path) as file:
        assert file["mask/valid"][:].tolist() == [b"demo_9"]
        assert file["mask/train"][:].tolist() == [f"demo_{i}".encode() for i in range(12) if i != 9]
        assert file["data/demo_0"].attrs["num_samples"] == 30
        assert file["data/demo_0/obs/image"].chunks[0] < 30, "images can be read one by one"


def test_no_validation(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "d.hdf5", [episode(s) for s in range(10)], ENV_ARGS, valid_every=0)
    with h5py.File(tmp_path / "d.hdf5") as file:
        assert len(file["mask/train"]) == 10 and len(file["mask/valid"]) == 0


def test_the_same_bytes_at_another_time(tmp_path: Path) -> None:
    for name in "ab":
        write_demonstrations(tmp_path / name, [episode(1), episode(2)], ENV_ARGS)
        time.sleep(1.1 if name == "a" else 0)  # HDF5's clock has seconds
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"actions": np.zeros(30)}, "expected \\(steps, action dim\\)"),
        ({"actions": np.zeros((0, 2))}, "steps > 0"),
        ({"actions": np.full((30, 2), np.nan)}, "actions contains NaN"),
        ({"observations": {}}, "no observations"),
        ({"observations": {"object": np.zeros((29, 3))}}, "obs/object has 29 rows"),
        ({"others": {"states": np.full((30, 1), np.inf)}}, "states contains NaN or infinity"),
        ({"next_observations": {"object": np.zeros((30, 3))}}, "next_observations are"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EpisodeError, match=says):
        episode(**changes)


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    write_demonstrations(path, [episode()], ENV_ARGS)
    before = path.read_bytes()

    def interrupted() -> Iterator[Episode]:
        yield episode(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demonstrations(path, interrupted(), ENV_ARGS)
    with pytest.raises(EpisodeError, match="no episodes"):
        write_demonstrations(path, [], ENV_ARGS)
    with pytest.raises(EpisodeError, match="episode 1 has arrays"):
        write_demonstrations(path, [episode(), episode(actions=np.zeros((30, 3)))], ENV_ARGS)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
