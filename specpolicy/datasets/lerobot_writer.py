"""Write a LeRobotDataset v3: vectors and images in parquet, several episodes a file.

Layout: see :mod:`specpolicy.datasets.lerobot`. Features are named as LeRobot's policies expect them:
``observation.<key>`` for each vector, ``observation.state`` for all of them joined, ``observation.images.<key>`` for
cameras, ``action``, ``next.reward``, ``next.done`` and ``next.success``.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.datasets.robomimic import Episode, EpisodeError
from specpolicy.utils.extras import require

VERSION = "v3.0"
_FILES_A_CHUNK, _MB_A_FILE, _MB_A_VIDEO = 1000, 100, 200  # LeRobot's own
_INDICES = ("frame_index", "episode_index", "index", "task_index")
_PIECES = "chunk-{0:03d}/file-{1:03d}.parquet"

Features = dict[str, dict[str, Any]]


def write_lerobot_dataset(
    path: str | Path, episodes: Iterable[Episode], fps: float, task: str, robot_type: str | None = None
) -> int:
    """Write episodes in the given order. The folder appears when it is complete.

    Args:
        path: the folder; it must not be there.
        episodes: taken one after another, so that not all of them need to be in memory. Images are (T, H, W, 3) or
            (T, 3, H, W) bytes.
        fps: ticks a second; whole, as LeRobot wants it.
        task: what is done, in words.
        robot_type: kept in ``meta/info.json``.

    Returns:
        How many episodes were written.

    Raises:
        EpisodeError: there is not one episode, or one has other features than the first.
        ValueError: ``fps`` is no positive whole number.
        FileExistsError: there is something at ``path``.
        ImportError: pyarrow or pillow is missing; the message names the extra.
    """
    if not fps > 0 or fps % 1:
        raise ValueError(f"fps={fps}; a LeRobotDataset has a whole number of frames a second")
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        writer = _Writer(temporary, int(fps), task, robot_type)
        for episode in episodes:
            writer.add(episode)
        count = writer.finish()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return count


class _Writer:
    """One data set under way."""

    def __init__(self, folder: Path, fps: int, task: str, robot_type: str | None) -> None:
        self._pa, self._parquet = require("pyarrow", "eval"), require("pyarrow.parquet", "eval")
        self._folder, self._fps, self._task, self._robot = folder, fps, task, robot_type
        self._features: Features = {}
        self._rows: list[dict[str, Any]] = []
        self._totals: dict[str, _Statistics] = {}
        self._frames = self._file = 0
        self._data: Any = None

    def add(self, episode: Episode) -> None:
        columns = _columns(episode)
        features = {name: _feature(values) for name, values in columns.items()}
        self._features = self._features or features
        if features != self._features:
            changed = sorted(
                name for name in {*features, *self._features} if features.get(name) != self._features.get(name)
            )
            raise EpisodeError(f"episode {len(self._rows)} has other features than the first one: {changed}")
        count, number = len(episode), len(self._rows)
        columns |= {
            "timestamp": (np.arange(count) / self._fps).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, number),
            "index": np.arange(self._frames, self._frames + count),
            "task_index": np.zeros(count, dtype=np.int64),
        }
        if self._data is not None and self._path("data").stat().st_size > _MB_A_FILE * 2**20:
            self._data.close()
            self._data, self._file = None, self._file + 1
        table = self._pa.table({name: self._column(values) for name, values in columns.items()})
        if self._data is None:
            self._path("data").parent.mkdir(parents=True, exist_ok=True)
            self._data = self._parquet.ParquetWriter(self._path("data"), table.schema)
        self._data.write_table(table)
        statistics = {name: _Statistics.of(values) for name, values in columns.items()}
        for name, each in statistics.items():
            self._totals[name] = each if name not in self._totals else self._totals[name].joined(each)
        self._rows.append(self._row(episode, number, count, statistics))
        self._frames += count

    def finish(self) -> int:
        if self._data is None:
            raise EpisodeError("no episodes to write")
        self._data.close()
        self._write_episodes()
        self._write_tasks()
        info = {
            "codebase_version": VERSION,
            "robot_type": self._robot,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": 1,
            "chunks_size": _FILES_A_CHUNK,
            "data_files_size_in_mb": _MB_A_FILE,
            "video_files_size_in_mb": _MB_A_VIDEO,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None,
            "features": {
                **self._features,
                "timestamp": {"dtype": "float32", "shape": [1], "names": None},
                **{name: {"dtype": "int64", "shape": [1], "names": None} for name in _INDICES},
            },
        }
        self._write_json("info.json", info)
        self._write_json("stats.json", {name: each.plain() for name, each in self._totals.items()})
        return len(self._rows)

    def _path(self, kind: str) -> Path:
        return self._folder / kind / _PIECES.format(*divmod(self._file, _FILES_A_CHUNK))

    def _column(self, values: NDArray[Any]) -> Any:
        if values.ndim == 4:
            return self._pa.array(
                [{"bytes": _png(image), "path": None} for image in values],
                self._pa.struct([("bytes", self._pa.binary()), ("path", self._pa.string())]),
            )
        if values.ndim == 1 or values.shape[1] == 1:  # one number a frame is no list
            return self._pa.array(values.reshape(-1))
        flat = self._pa.array(np.ascontiguousarray(values).reshape(-1))
        return self._pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

    def _row(
        self, episode: Episode, number: int, count: int, statistics: Mapping[str, _Statistics]
    ) -> dict[str, Any]:  # fmt: skip
        chunk, file = divmod(self._file, _FILES_A_CHUNK)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [self._task],
            "length": count,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + count,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            **episode.attributes,
        }
        for name, each in statistics.items():
            row |= {f"stats/{name}/{kind}": value for kind, value in each.plain().items()}
        return row

    def _write_episodes(self) -> None:
        path = self._folder / "meta" / "episodes" / _PIECES.format(0, 0)
        path.parent.mkdir(parents=True)
        self._parquet.write_table(self._pa.Table.from_pylist(self._rows), path)

    def _write_tasks(self) -> None:
        """A table as pandas writes it, the task being its index."""
        table = self._pa.table({"task_index": self._pa.array([0]), "task": [self._task]})
        kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
        described = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
                for name, (kind, numpy) in kinds.items()
            ],
            "creator": {"library": "pyarrow", "version": self._pa.__version__},
            "pandas_version": "2.0.0",
        }
        table = table.replace_schema_metadata({b"pandas": json.dumps(described).encode()})
        self._parquet.write_table(table, self._folder / "meta" / "tasks.parquet")

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        (self._folder / "meta" / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Statistics:
    """Least, largest, mean and deviation of a feature; of images by colour, from 0 to 1."""

    low: NDArray[Any]
    high: NDArray[Any]
    total: NDArray[Any]
    square: NDArray[Any]
    count: int

    @classmethod
    def of(cls, values: NDArray[Any]) -> _Statistics:
        count = len(values)
        if values.ndim == 4:  # one number a colour, in the axes that LeRobot's images have
            numbers = values.reshape(-1, 3, 1, 1).astype(np.float64) / 255
        else:
            numbers = values.reshape(count, -1).astype(np.float64)
        mean = numbers.mean(0)
        return cls(numbers.min(0), numbers.max(0), mean * count, (numbers.var(0) + mean**2) * count, count)

    def joined(self, other: _Statistics) -> _Statistics:
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return _Statistics(low, high, self.total + other.total, self.square + other.square, self.count + other.count)

    def plain(self) -> dict[str, Any]:
        mean = self.total / self.count
        deviation = np.sqrt(np.maximum(self.square / self.count - mean**2, 0))
        return {
            "min": self.low.tolist(), "max": self.high.tolist(), "mean": mean.tolist(), "std": deviation.tolist(),
            "count": [self.count],
        }  # fmt: skip


def _columns(episode: Episode) -> dict[str, NDArray[Any]]:
    vectors = {name: values for name, values in episode.observations.items() if values.ndim == 2}
    images = {name: values for name, values in episode.observations.items() if values.ndim == 4}
    if other := sorted(episode.observations.keys() - vectors.keys() - images.keys()):
        raise EpisodeError(
            f"observations {other} are neither vectors nor images; a LeRobotDataset has no place for them"
        )
    columns = {_named(name): values.astype(np.float32) for name, values in vectors.items()}
    if vectors:
        columns.setdefault("observation.state", np.concatenate(list(columns.values()), axis=1))
    for name, values in images.items():
        columns[_named(name, "images.")] = values if values.shape[-1] == 3 else np.moveaxis(values, 1, -1)
    columns["action"] = episode.actions.astype(np.float32)
    count = len(episode)
    last = np.arange(count) == count - 1
    rewards = episode.others.get("rewards")
    columns["next.reward"] = np.zeros(count, np.float32) if rewards is None else rewards.astype(np.float32)
    columns["next.done"] = last
    columns["next.success"] = last & bool(episode.attributes.get("success", False))
    return columns


def _named(key: str, kind: str = "") -> str:
    return key if key.startswith("observation.") else f"observation.{kind}{key}"


def _feature(values: NDArray[Any]) -> dict[str, Any]:
    if values.ndim == 4:
        return {"dtype": "image", "shape": list(values.shape[1:]), "names": ["height", "width", "channels"]}
    if values.ndim == 1:
        return {"dtype": str(values.dtype), "shape": [1], "names": None}
    return {"dtype": str(values.dtype), "shape": [values.shape[1]], "names": None}


def _png(image: NDArray[np.uint8]) -> bytes:
    pillow: Any = require("PIL.Image", "eval")
    written = io.BytesIO()
    pillow.fromarray(np.ascontiguousarray(image)).save(written, "png")
    return written.getvalue()
