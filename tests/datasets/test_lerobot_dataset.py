"""LeRobotDataset v3 as a source of observations; its layout is written here by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import specpolicy
from specpolicy.calibration.calibrate import observations_of_demonstrations
from specpolicy.datasets.lerobot import LeRobotDataset, is_lerobot_dataset
from specpolicy.datasets.robomimic import DemonstrationError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
LENGTHS, SIZE = (5, 3, 4), (32, 48)  # rows, columns of a frame
TOP, WRIST = "observation.images.top", "observation.images.wrist"
RED = [20 * frame for frame in range(sum(LENGTHS))]
"""Each frame has a red of its own."""


def frame(red: int) -> NDArray[np.uint8]:
    picture = np.full((*SIZE, 3), 40, np.uint8)
    picture[..., 0] = red
    return picture


def png(red: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame(red)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three episodes in two files, a camera as video and one inside the parquet files."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    root = tmp_path / "pusht"
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": [2]},
        TOP: {"dtype": "video", "shape": [*SIZE, 3]},
        WRIST: {"dtype": "image", "shape": [*SIZE, 3]},
        "episode_index": {"dtype": "int64", "shape": [1]},
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v3.0", "fps": 10, "features": features}))
    episode = np.repeat(np.arange(3), LENGTHS)
    within = np.concatenate([np.arange(each) for each in LENGTHS])
    for file, rows in enumerate((slice(0, 8), slice(8, 12))):
        write(
            root / f"data/chunk-000/file-{file:03d}.parquet",
            {
                "observation.state": [[float(e), float(w)] for e, w in zip(episode[rows], within[rows], strict=True)],
                "action": [[float(w), -1.0] for w in within[rows]],
                WRIST: [{"bytes": png(red), "path": None} for red in RED[rows]],
                "episode_index": episode[rows],
                "frame_index": within[rows],
            },
        )
    write(
        root / "meta/episodes/chunk-000/file-000.parquet",
        {
            "episode_index": [0, 1, 2],
            "length": list(LENGTHS),
            f"videos/{TOP}/chunk_index": [0, 0, 0],
            f"videos/{TOP}/file_index": [0, 1, 1],
        },
    )
    for file, rows in enumerate((slice(0, 5), slice(5, 12))):
        name = root / f"videos/{TOP}/chunk-000/file-{file:03d}.mp4"
        name.parent.mkdir(parents=True, exist_ok=True)
        writer = ffmpeg.write_frames(str(name), SIZE[::-1], fps=10, macro_block_size=1)
        writer.send(None)
        for red in RED[rows]:
            writer.send(frame(red))
        writer.close()
    return root


def test_vectors_images_and_video_of_each_episode(dataset: Path) -> None:
    assert is_lerobot_dataset(dataset) and not is_lerobot_dataset(dataset / "data")
    found = list(LeRobotDataset(dataset).episodes({"observation.state": 2}, {TOP: (3, *SIZE), WRIST: (*SIZE, 3)}, 2))
    assert [len(each.actions) for each in found] == list(LENGTHS)
    begin = 0
    for index, episode in enumerate(found):
        np.testing.assert_array_equal(episode.observations[:, 0], index)
        np.testing.assert_array_equal(episode.observations[:, 1], np.arange(LENGTHS[index]))
        np.testing.assert_array_equal(episode.actions, [[step, -1] for step in range(LENGTHS[index])])
        red = RED[begin : begin + LENGTHS[index]]
        assert episode.images[WRIST].shape == (len(red), *SIZE, 3)
        np.testing.assert_array_equal(episode.images[WRIST][:, 0, 0, 0], red)
        assert episode.images[TOP].shape == (len(red), 3, *SIZE)
        np.testing.assert_allclose(episode.images[TOP][:, 0].mean(axis=(1, 2)), red, atol=6)  # lossy
        begin += len(red)


def _info(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / "meta/info.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def _data(change: Callable[[dict[str, list[Any]]], None]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / "data/chunk-000/file-000.parquet"
        content = parquet.read_table(path).to_pydict()
        change(content)
        write(path, content)

    return spoil


def _cut(name: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / name
        path.write_bytes(path.read_bytes()[:-300])

    return spoil


def _outside(columns: dict[str, list[Any]]) -> None:
    columns[WRIST][0] = {"bytes": None, "path": "../../secret.png"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_info(lambda info: info.update(codebase_version="v2.1")), r"codebase_version 'v2\.1'; expected v3"),
        (_info(lambda info: info.pop("fps")), "info.json cannot be read.*KeyError"),
        (_info(lambda info: info["features"].pop("observation.state")), r"lacks the features \['observation\.state'\]"),
        (_info(lambda info: info["features"]["action"].update(shape=[7])), r"'action' is float32 of shape \(7,\)"),
        (_info(lambda info: info["features"][TOP].update(dtype="float32")), "is float32; expected image or video"),
        (_data(lambda c: c.pop("action")), r"file-000\.parquet lacks the columns \['action'\]"),
        (
            _data(lambda c: c["action"].__setitem__(6, [1.0, float("nan")])),
            r"episode 1: 'action' contains NaN.*frame 1",
        ),
        (
            _data(lambda c: c["observation.state"].__setitem__(0, [1.0])),
            r"episode 0: 'observation\.state' is not \(2,\)",
        ),
        (_data(lambda c: c["frame_index"].__setitem__(2, 9)), "episode 0: frame_index does not count"),
        (_data(lambda c: c["episode_index"].__setitem__(slice(5, 8), [4, 4, 4])), "continues with episode 4; expected"),
        (_data(lambda c: c[WRIST].__setitem__(1, {"bytes": b"GIF", "path": None})), "of frame 1 is no image"),
        (_data(_outside), "leaves the dataset"),
        (_cut("data/chunk-000/file-001.parquet"), r"file-001\.parquet is damaged"),
        (_cut(f"videos/{TOP}/chunk-000/file-001.mp4"), r"file-001\.mp4 (has \d+ frames|cannot be decoded)"),
        (lambda root: (root / f"videos/{TOP}/chunk-000/file-001.mp4").unlink(), r"file-001\.mp4 is missing"),
        (
            lambda root: (root / "data/chunk-000/file-000.parquet").unlink(),
            "continues with episode 2; expected episode 0",
        ),
    ],
)
def test_what_is_wrong_is_named(dataset: Path, spoil: Callable[[Path], Any], says: str) -> None:
    spoil(dataset)
    with pytest.raises(DemonstrationError, match=says) as refused:
        list(LeRobotDataset(dataset).episodes({"observation.state": 2}, {TOP: (3, *SIZE), WRIST: (*SIZE, 3)}, 2))
    assert str(dataset) in str(refused.value) and "\n" not in str(refused.value)


FIXTURES = Path(__file__).parents[1] / "interop" / "fixtures"


def test_a_lerobot_policy_finds_its_observations(tmp_path: Path) -> None:
    policy = specpolicy.load_policy(FIXTURES / "lerobot")
    numbers, root = np.random.default_rng(0), tmp_path / "ds"
    columns = {
        name: numbers.normal(size=(9, dim)).astype(np.float32)
        for name, dim in {"observation.state": 5, "observation.environment_state": 8, "action": 4}.items()
    }
    features = {name: {"dtype": "float32", "shape": [part.shape[1]]} for name, part in columns.items()}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v3.0", "fps": 10, "features": features}))
    index = {"episode_index": [0] * 6 + [1] * 3, "frame_index": [*range(6), *range(3)]}
    write(root / "data/chunk-000/file-000.parquet", {name: part.tolist() for name, part in columns.items()} | index)

    found = observations_of_demonstrations(policy, root)
    assert found.observations.shape == (9, 2, 13) and found.group.tolist() == index["episode_index"]
    joined = np.concatenate([columns["observation.state"], columns["observation.environment_state"]], axis=1)
    np.testing.assert_array_equal(found.observations[:, 1], joined)
    np.testing.assert_array_equal(found.observations[[0, 6], 0], joined[[0, 6]])  # the first step is repeated
    assert found.origin["file"] == "ds" and len(found.origin["sha256"]) == 64
    columns["action"][0, 0] += 1
    write(root / "data/chunk-000/file-000.parquet", {name: part.tolist() for name, part in columns.items()} | index)
    assert observations_of_demonstrations(policy, root).origin["sha256"] != found.origin["sha256"]


def test_one_joined_observation_is_put_together_from_a_robomimic_file(tmp_path: Path) -> None:
    """As diffusion_policy's low-dimensional data sets do: the keys of the configuration, in its order."""
    h5py = pytest.importorskip("h5py")
    policy = specpolicy.load_policy(FIXTURES / "diffusion_policy_transformer.ckpt")
    policy.config.source["joined"] = {"obs": ["object", "grip"]}
    numbers, path = np.random.default_rng(0), tmp_path / "demos.hdf5"
    parts = {"grip": numbers.normal(size=(4, 6)), "object": numbers.normal(size=(4, 14))}
    with h5py.File(path, "w") as file:
        for name, part in parts.items():
            file[f"data/demo_0/obs/{name}"] = part
        file["data/demo_0/actions"] = numbers.uniform(-1, 1, (4, 2))
    found = observations_of_demonstrations(policy, path).observations
    np.testing.assert_allclose(found[:, -1], np.concatenate([parts["object"], parts["grip"]], 1), rtol=1e-6)
    policy.config.source["joined"] = {"obs": ["grip"]}
    with pytest.raises(
        DemonstrationError, match=r"'obs' is joined from \{'grip': 6\}, 6 numbers; the policy expects 20"
    ):
        observations_of_demonstrations(policy, path)
