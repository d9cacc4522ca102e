"""What a demonstration file says is heard: masks, control mode, damage, content that was never written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from specpolicy.datasets.demonstrations import check_environment, read_demonstrations
from specpolicy.datasets.robomimic import DemonstrationError, read_episodes

KEYS = {"object": 3, "eef": 2}
SQUARE = {"env_name": "NutAssemblySquare", "env_version": "1.4.1", "control_delta": True}


def write_file(path: Path, demos: int = 6, length: int = 20, **env_args: Any) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(demos):
            group = file.create_group(f"data/demo_{number}")
            group.create_dataset("actions", data=np.tanh(rng.normal(size=(length, 4))), chunks=(5, 4), compression=4)
            group["rewards"] = np.zeros(length)
            for key, dim in KEYS.items():
                group[f"obs/{key}"] = rng.normal(size=(length, dim))
            group["obs/joints"] = rng.normal(size=(length, 7))
        if env_args:
            file["data"].attrs["env_args"] = json.dumps(env_args)
    return path


def edited(path: Path, edit: Callable[[h5py.File], Any]) -> Path:
    with h5py.File(path, "a") as file:
        edit(file)
    return path


def mask(file: h5py.File, **names: list[int]) -> None:
    for key, listed in names.items():
        file[f"mask/{key}"] = np.array([f"demo_{each}".encode() for each in listed])


@pytest.mark.parametrize(
    ("masks", "options", "train", "valid"),
    [
        ({}, {}, [0, 1, 2, 3], [5, 4]),
        ({"valid": [1, 3, 4]}, {}, [0, 2, 5], [1, 3, 4]),  # all of mask/valid, however few were asked for
        ({"valid": [1]}, {}, [0, 2, 3, 4], [1, 5]),
        ({"train": [0, 2], "valid": [1, 3]}, {}, [0, 2], [1, 3]),  # 4 and 5 are in neither
        ({"train": [0, 2, 4], "valid": []}, {}, [0], [4, 2]),
        ({"few": [0, 1, 4], "valid": [1, 3]}, {"filter_key": "few"}, [0], [1, 4]),
        ({"train": [0], "valid": [3, 1]}, {"filter_key": "all"}, [0, 2, 4, 5], [3, 1]),
        ({"valid": [3, 1, 2]}, {"filter_key": "all"}, [0, 2, 4, 5], [3, 1]),
    ],
)
def test_masks_are_heard(tmp_path: Path, masks: Any, options: Any, train: list[int], valid: list[int]) -> None:
    path = edited(write_file(tmp_path / "d.hdf5"), lambda file: mask(file, **masks))
    data = read_demonstrations(path, KEYS, 2, **options)
    assert [each.name for each in data.train] == [f"demo_{number}" for number in train]
    assert [each.name for each in data.valid] == [f"demo_{number}" for number in valid]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: mask(f, train=[0, 1], valid=[1]), r"mask: \['demo_1'\] are in train and in valid"),
        (lambda f: mask(f, train=[0, 77]), r"mask/train names \['demo_77'\], which the group 'data' does not have"),
        (lambda f: f.create_dataset("mask/valid", data=np.arange(3)), "mask/valid expected a list of names"),
        (lambda f: f.create_dataset("mask/valid", data=b"demo_1"), "mask/valid expected a list of names"),
        (lambda f: f.create_dataset("mask", data=np.arange(3)), "mask is an array; expected a group"),
        (lambda f: f.create_group("mask/valid"), "mask/valid expected a list of names"),
    ],
)
def test_masks_that_contradict_the_episodes(tmp_path: Path, edit: Any, says: str) -> None:
    with pytest.raises(DemonstrationError, match=says):
        read_demonstrations(edited(write_file(tmp_path / "d.hdf5"), edit), KEYS, 2)


def test_an_unknown_filter_key_lists_the_known_ones(tmp_path: Path) -> None:
    path = edited(write_file(tmp_path / "d.hdf5"), lambda file: mask(file, train=[0], valid=[1]))
    with pytest.raises(DemonstrationError, match=r"no filter key '20_percent'; found \['train', 'valid'\]"):
        read_demonstrations(path, KEYS, 1, filter_key="20_percent")


def replaced(name: str, data: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[f"data/demo_2/{name}"]
        file[f"data/demo_2/{name}"] = data

    return edit


def emptied(file: h5py.File) -> None:
    for name in ("actions", "obs/object", "obs/eef"):
        replaced(name, np.zeros((0, file[f"data/demo_0/{name}"].shape[1])))(file)


def resized(file: h5py.File) -> None:
    """As a writer leaves it that was stopped: the shape is there, the last rows are not."""
    del file["data/demo_2/actions"]
    file.create_dataset("data/demo_2/actions", shape=(20, 4), chunks=(5, 4), dtype="f8")[:10] = 0.5


def unwritten(file: h5py.File) -> None:
    del file["data/demo_2/obs/eef"]
    file.create_dataset("data/demo_2/obs/eef", shape=(20, 2), dtype="f8")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (emptied, "data/demo_2/actions has no step"),
        (replaced("actions", np.zeros((20, 14))), r"data/demo_2/actions has shape \(20, 14\); expected \(steps, 4\)"),
        (replaced("actions", np.zeros(20)), r"data/demo_2/actions has shape \(20,\)"),
        (replaced("obs/eef", np.zeros((20, 3))), r"data/demo_2/obs/eef has shape \(20, 3\); expected \(20, 2\)"),
        (replaced("obs/eef", np.full((20, 2), b"0.5")), "data/demo_2/obs/eef holds text; expected numbers"),
        (replaced("obs/eef", 1.0), "data/demo_2/obs/eef holds a single number"),
        (replaced("obs/eef", np.full((20, 2), 1e39)), "data/demo_2/obs/eef contains NaN, infinity or what float32"),
        (replaced("obs", np.zeros(3)), "data/demo_2/obs is an array; expected a group"),
        (resized, "data/demo_2/actions has shape .* not all of its content was written"),
        (unwritten, "data/demo_2/obs/eef has shape .* not all of its content was written"),
        (lambda f: f["data/demo_2"].attrs.__setitem__("num_samples", 30), "num_samples says 30, but there are 20"),
        (lambda f: f["data/demo_2"].attrs.__setitem__("seed", "abc"), "demo_2: attribute seed is 'abc'"),
        (lambda f: f["data/demo_2"].attrs.__setitem__("seed", 1.5), "demo_2: attribute seed is 1.5"),
        (lambda f: f["data"].attrs.__setitem__("env_args", "{"), r"env_args'\] is no JSON"),
        (lambda f: f["data"].attrs.__setitem__("env_args", "[1]"), r"env_args'\] is \[1\]; expected a JSON object"),
        (lambda f: f["data"].attrs.__setitem__("env_args", '{"env_name": 3}'), "env_name is 3; expected text"),
    ],
)
def test_damage_names_file_and_place(tmp_path: Path, edit: Any, says: str) -> None:
    path = edited(write_file(tmp_path / "d.hdf5"), edit)
    with pytest.raises(DemonstrationError, match=says) as error:
        read_demonstrations(path, KEYS, 1, action_dim=4)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_broken_chunk_names_the_episode(tmp_path: Path) -> None:
    path = write_file(tmp_path / "d.hdf5")
    with h5py.File(path) as file:
        chunk = file["data/demo_2/actions"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    with pytest.raises(DemonstrationError, match=r"d\.hdf5, data/demo_2/actions is damaged"):
        read_demonstrations(path, KEYS, 1)
    with pytest.raises(DemonstrationError, match=r"d\.hdf5, data/demo_2/actions is damaged"):
        list(read_episodes(path))


def test_the_number_of_actions_is_the_first_episodes_where_nobody_says(tmp_path: Path) -> None:
    path = edited(write_file(tmp_path / "d.hdf5"), replaced("actions", np.zeros((20, 14))))
    with pytest.raises(DemonstrationError, match=r"data/demo_2/actions has shape \(20, 14\); expected \(steps, 4\)"):
        read_demonstrations(path, KEYS, 1)
    with pytest.raises(DemonstrationError, match=r"data/demo_0/actions has shape \(20, 4\); expected \(steps, 7\)"):
        read_demonstrations(path, KEYS, 1, action_dim=7)


def controller(**values: Any) -> dict[str, Any]:
    return {"env_name": "NutAssemblySquare", "env_version": "1.4.1", "env_kwargs": {"controller_configs": values}}


@pytest.mark.parametrize(
    ("env_args", "says"),
    [
        ({"env_name": "PickPlaceCan"}, "env_name is 'PickPlaceCan'; this task's is 'NutAssemblySquare'"),
        (controller(control_delta=False), "control_delta is false, so that actions are absolute; this task plays rel"),
        (controller(body_parts={"right": {"input_type": "absolute"}}), "control_delta is false"),
    ],
)
def test_another_environment_or_control_mode_is_refused(tmp_path: Path, env_args: Any, says: str) -> None:
    data = read_demonstrations(write_file(tmp_path / "d.hdf5", **env_args), KEYS, 1)
    with pytest.raises(DemonstrationError, match=says):
        check_environment(data, SQUARE)
    assert check_environment(data, {}) == []


def test_the_environment_that_fits_and_an_older_one(tmp_path: Path) -> None:
    fits = read_demonstrations(write_file(tmp_path / "a.hdf5", **controller(control_delta=True)), KEYS, 1)
    assert check_environment(fits, SQUARE) == [] and fits.info.control_delta is True
    older = controller(control_delta=True) | {"env_version": "1.2.0"}
    (warning,) = check_environment(read_demonstrations(write_file(tmp_path / "b.hdf5", **older), KEYS, 1), SQUARE)
    assert "version 1.2.0" in warning and "plays 1.4.1" in warning
    odd = controller(control_delta="yes")
    with pytest.raises(DemonstrationError, match="control_delta is 'yes'; expected true or false"):
        read_demonstrations(write_file(tmp_path / "c.hdf5", **odd), KEYS, 1)


def test_relative_actions_far_outside_their_range(tmp_path: Path) -> None:
    path = write_file(tmp_path / "d.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][3, 2] = 1.2
    (warning,) = check_environment(read_demonstrations(path, KEYS, 1), SQUARE)
    assert "reach 1.2 (coordinate 2)" in warning
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][3, 2] = -3.2
    with pytest.raises(DemonstrationError, match=r"actions reach -3\.2 to .* \(coordinate 2\)"):
        check_environment(read_demonstrations(path, KEYS, 1), SQUARE)


def test_the_summary_says_what_is_used(tmp_path: Path) -> None:
    path = edited(
        write_file(tmp_path / "d.hdf5", **controller(control_delta=True)),
        lambda file: mask(file, train=[0, 2], valid=[1]),
    )
    text = read_demonstrations(path, KEYS, 1).summary()
    assert "2 demonstrations to learn from (40 steps), 1 to validate on" in text
    assert "split by mask/train and mask/valid, 3 in neither are not used" in text
    assert "NutAssemblySquare 1.4.1; relative actions of 4 coordinates, from -0." in text
    assert "not read: rewards, obs/joints" in text


def test_a_name_that_a_mask_lists_twice_counts_once(tmp_path: Path) -> None:
    path = edited(write_file(tmp_path / "d.hdf5"), lambda file: mask(file, train=[0, 0, 1, 2], valid=[3, 3]))
    data = read_demonstrations(path, KEYS, validation_demos=1)
    assert [each.name for each in data.train] == ["demo_0", "demo_1", "demo_2"]
    assert [each.name for each in data.valid] == ["demo_3"] and "2 in neither" in data.info.split


@pytest.mark.parametrize(
    ("place", "link", "says"),
    [
        ("data/demo_6", h5py.SoftLink("/nowhere"), "data/demo_6 is a link to what is not there"),
        ("data/demo_6", h5py.ExternalLink("absent.hdf5", "/data/demo_0"), "data/demo_6 is a link to what is not there"),
        ("data/demo_6", h5py.SoftLink("/data/demo_6"), "data/demo_6 cannot be found"),
        ("data/demo_2/obs/loop", h5py.SoftLink("/data/demo_2/obs/loop"), "data/demo_2/obs holds a link that leads"),
    ],
)
def test_links_that_lead_nowhere(tmp_path: Path, place: str, link: Any, says: str) -> None:
    path = edited(write_file(tmp_path / "d.hdf5"), lambda file: file.__setitem__(place, link))
    with pytest.raises(DemonstrationError, match=says):
        read_demonstrations(path, KEYS, validation_demos=1)
    with pytest.raises(DemonstrationError, match=says):
        list(read_episodes(path))


def test_episodes_that_cannot_be_learned_from_name_file_and_episode(tmp_path: Path) -> None:
    path = edited(write_file(tmp_path / "d.hdf5"), replaced("rewards", np.full(20, np.nan)))
    with pytest.raises(DemonstrationError, match=r"d.hdf5, data/demo_2: rewards contains NaN"):
        list(read_episodes(path))
