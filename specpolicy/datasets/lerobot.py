"""Read a LeRobotDataset v3: vectors and images from parquet, video frames through ffmpeg.

Layout: ``meta/info.json`` names the features; ``data/chunk-*/file-*.parquet`` holds a row for each frame, several
episodes a file; ``meta/episodes/chunk-*/file-*.parquet`` says in which ``videos/<key>/chunk-*/file-*.mp4`` an
episode's frames are.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from specpolicy.datasets.demonstrations import Demonstration
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.utils.checks import shown
from specpolicy.utils.errors import one_line
from specpolicy.utils.extras import require

INFO = Path("meta") / "info.json"
_LARGEST_IMAGE = 1 << 26
"""Bytes of one decoded image: what is larger is no camera's."""


def is_lerobot_dataset(path: str | Path) -> bool:
    """Tell whether a folder is a LeRobotDataset, of any version."""
    return (Path(path) / INFO).is_file()


class LeRobotDataset:
    """Open a LeRobotDataset v3 for reading.

    Args:
        path: its folder, with ``meta/info.json``.

    Attributes:
        path: its folder.
        kinds: ``dtype`` of each feature.
        shapes: its shape.
        fps: frames a second.

    Raises:
        DemonstrationError: ``meta/info.json`` is missing or damaged, or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            info = json.loads((self.path / INFO).read_text(encoding="utf-8"))
            version, features = str(info["codebase_version"]), dict(info["features"])
            self.fps = float(info["fps"])
            self.kinds = {str(name): str(each["dtype"]) for name, each in features.items()}
            self.shapes = {str(name): tuple(int(n) for n in each["shape"]) for name, each in features.items()}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DemonstrationError(
                f"{self.path / INFO} cannot be read ({type(error).__name__}: {one_line(error)}); expected a "
                "LeRobotDataset with codebase_version, fps and features"
            ) from error
        if not version.startswith("v3."):
            self._refuse(
                str(INFO),
                f"has codebase_version {version!r}; expected v3.x: convert it with "
                "`python -m lerobot.datasets.v30.convert_dataset_v21_to_v30`",
            )
        if not self.fps > 0:
            self._refuse(str(INFO), f"has fps {self.fps}; expected frames a second")

    def episodes(
        self,
        keys: Mapping[str, int],
        images: Mapping[str, tuple[int, ...]] | None = None,
        action_dim: int | None = None,
    ) -> Iterator[Demonstration]:
        """Read episode by episode; one data file and the frames of one episode are in memory at a time.

        Args:
            keys: vectors to read and their lengths; joined in this order. Features may have LeRobot's prefixes
                ``observation.`` and ``observation.images.`` before these names.
            images: cameras to read and the shape of one image, (H, W, C) or (C, H, W).
            action_dim: coordinates that an action must have; None: any number.

        Yields:
            The episodes in the order of their indices, images in the layout that was asked for.

        Raises:
            DemonstrationError: a feature is missing or has another shape; a file is missing or damaged; values are not
                finite; an episode has frames twice or lacks some. One line that names file, episode and feature.
            ImportError: pyarrow, pillow or imageio-ffmpeg is missing; the message names the extra.
        """
        cameras = {self._feature(key, "observation.images."): shape for key, shape in (images or {}).items()}
        named = {feature: key for key in images or {} for feature in [self._feature(key, "observation.images.")]}
        keys = {self._feature(key, "observation."): dim for key, dim in keys.items()}
        self._check_features(keys, cameras, action_dim)
        videos = {key: self._video_frames(key) for key in cameras if self.kinds[key] == "video"}
        stored = [key for key in cameras if key not in videos]
        columns = ["episode_index", "frame_index", "action", *keys, *stored]
        expected = 0
        for index, file, table in self._tables(columns):
            place = f"episode {index}"
            if index != expected:
                self._refuse(file, f"continues with {place}; expected episode {expected}: a file is missing or twice")
            expected += 1
            order = np.asarray(table["frame_index"])
            if not np.array_equal(order, np.arange(len(order))):
                self._refuse(file, f"{place}: frame_index does not count from 0 to {len(order) - 1}")
            actions = self._numbers(file, place, "action", table["action"], self.shapes["action"])
            parts = [self._numbers(file, place, key, table[key], self.shapes[key]) for key in keys]
            pictures = {key: self._images(file, place, key, table[key], cameras[key]) for key in stored}
            for key, frames in videos.items():
                pictures[key] = np.stack([self._next_frame(place, key, frames, cameras[key]) for _ in order])
            yield Demonstration(
                name=f"episode_{index}",
                observations=np.concatenate(parts, axis=1) if parts else np.zeros((len(order), 0), np.float32),
                actions=actions,
                images={named[key]: frames for key, frames in pictures.items()},
            )
        if not expected:
            self._refuse("data", "holds no episode")

    def _feature(self, key: str, prefix: str) -> str:
        return f"{prefix}{key}" if key not in self.kinds and f"{prefix}{key}" in self.kinds else key

    def _check_features(
        self, keys: Mapping[str, int], cameras: Mapping[str, tuple[int, ...]], action_dim: int | None
    ) -> None:
        missing = [key for key in ("action", *keys, *cameras) if key not in self.kinds]
        if missing:
            self._refuse(str(INFO), f"lacks the features {missing}; found {shown(sorted(self.kinds))}")
        dims = {**keys, **({} if action_dim is None else {"action": action_dim})}
        for key, dim in dims.items():
            kind, shape = self.kinds[key], self.shapes[key]
            if int(np.prod(shape)) != dim or kind in ("image", "video", "string"):
                self._refuse(str(INFO), f"feature {key!r} is {kind} of shape {shape}; expected {dim} numbers")
        for key, layout in cameras.items():
            if self.kinds[key] not in ("image", "video"):
                self._refuse(str(INFO), f"feature {key!r} is {self.kinds[key]}; expected image or video")
            if len(layout) != 3 or 3 not in (layout[0], layout[-1]):
                self._refuse(str(INFO), f"feature {key!r}: the policy wants images of shape {layout}; expected colours")

    def _tables(self, columns: list[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Columns of one episode after the other; an episode may go on in the next file."""
        begun: tuple[int, str, dict[str, list[Any]]] | None = None
        for path in self._files("data"):
            file = str(path.relative_to(self.path))
            table = self._read(path, columns)
            index = np.asarray(table["episode_index"])
            if index.dtype.kind not in "iu":
                self._refuse(file, "episode_index holds no whole numbers")
            for first, last in _runs(index):
                rows = {name: column[first:last] for name, column in table.items()}
                if begun is not None and begun[0] == index[first]:
                    for name, column in rows.items():
                        begun[2][name].extend(column)
                    continue
                if begun is not None:
                    yield begun
                begun = int(index[first]), file, {name: list(column) for name, column in rows.items()}
        if begun is not None:
            yield begun

    def _files(self, folder: str) -> list[Path]:
        found = sorted((self.path / folder).glob("chunk-*/file-*.parquet"))
        if not found:
            self._refuse(folder, "has no chunk-*/file-*.parquet")
        return found

    def _read(self, path: Path, columns: list[str]) -> dict[str, list[Any]]:
        parquet: Any = require("pyarrow.parquet", "eval")
        file = str(path.relative_to(self.path))
        try:
            names = set(parquet.read_schema(path).names)
            if missing := [name for name in columns if name not in names]:
                self._refuse(file, f"lacks the columns {missing}; found {shown(sorted(names))}")
            table: dict[str, list[Any]] = parquet.read_table(path, columns=columns).to_pydict()
        except DemonstrationError:
            raise
        except Exception as error:  # pyarrow has a dozen kinds for damaged files
            raise DemonstrationError(
                f"{self.path}, {file} is damaged ({one_line(error)}); copy the file again"
            ) from error
        return table

    def _numbers(self, file: str, place: str, key: str, column: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
        try:
            with np.errstate(over="ignore"):
                values = np.asarray(column, dtype=np.float64).astype(np.float32)
            values = values.reshape(len(column), int(np.prod(shape)))
        except (TypeError, ValueError) as error:
            raise DemonstrationError(
                f"{self.path}, {file}, {place}: {key!r} is not {shape} numbers in each row ({one_line(error)})"
            ) from error
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            self._refuse(file, f"{place}: {key!r} contains NaN, infinity or what float32 cannot hold (frame {row})")
        return values

    def _images(self, file: str, place: str, key: str, column: Any, layout: tuple[int, ...]) -> NDArray[np.uint8]:
        """Decode images that lie in the parquet file itself, or beside it."""
        Image: Any = require("PIL.Image", "eval")
        frames = []
        for row, cell in enumerate(column):
            try:
                content = cell.get("bytes") or self._beside(cell["path"]).read_bytes()
                with Image.open(io.BytesIO(content)) as image:
                    if image.width * image.height * 3 > _LARGEST_IMAGE:
                        raise ValueError(f"{image.width} x {image.height} pixels")
                    frames.append(_laid_out(np.asarray(image.convert("RGB")), layout))
            except Exception as error:  # of pillow, by format
                raise DemonstrationError(
                    f"{self.path}, {file}, {place}: {key!r} of frame {row} is no image of shape {layout} "
                    f"({one_line(error)})"
                ) from error
        return np.stack(frames)

    def _beside(self, name: str) -> Path:
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise ValueError(f"{name} leaves the dataset")
        return path

    def _video_frames(self, key: str) -> Iterator[NDArray[np.uint8]]:
        """All frames of a camera, (H, W, 3), in the order of the episodes."""
        columns = ["episode_index", "length", *(f"videos/{key}/{name}" for name in ("chunk_index", "file_index"))]
        rows = [self._read(path, columns) for path in self._files("meta/episodes")]
        joined = {name: [value for part in rows for value in part[name]] for name in columns}
        counts: dict[tuple[int, int], int] = {}
        for _, length, chunk, file in sorted(zip(*joined.values(), strict=True)):
            counts[chunk, file] = counts.get((chunk, file), 0) + length
        for (chunk, file), count in counts.items():
            name = f"videos/{key}/chunk-{chunk:03d}/file-{file:03d}.mp4"
            found = 0
            for frame in self._decoded(name):
                if found < count:
                    yield frame
                found += 1
            if found < count:
                self._refuse(name, f"has {found} frames; meta/episodes say {count}")

    def _next_frame(
        self, place: str, key: str, frames: Iterator[NDArray[np.uint8]], layout: tuple[int, ...]
    ) -> NDArray[np.uint8]:
        frame = next(frames, None)
        if frame is None:
            self._refuse(f"videos/{key}", f"ends in {place}: meta/episodes count fewer frames than data holds")
        return _laid_out(frame, layout)

    def _decoded(self, name: str) -> Iterator[NDArray[np.uint8]]:
        ffmpeg: Any = require("imageio_ffmpeg", "eval")
        if not (self.path / name).is_file():
            self._refuse(name, "is missing")
        try:
            frames = ffmpeg.read_frames(str(self.path / name), output_params=["-fps_mode", "passthrough"])
            width, height = next(frames)["size"]
            for frame in frames:
                yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        except (OSError, RuntimeError, StopIteration, ValueError, KeyError) as error:
            raise DemonstrationError(
                f"{self.path}, {name} cannot be decoded ({one_line(error)[:200]}); copy the file again"
            ) from error

    def _refuse(self, place: str, message: str) -> NoReturn:
        raise DemonstrationError(f"{self.path}, {place} {message}")


def _runs(values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return ((first, last) for first, last in pairwise(edges) if last > first)


def _laid_out(frame: NDArray[np.uint8], layout: tuple[int, ...]) -> NDArray[np.uint8]:
    """A frame (H, W, 3) in the layout that is asked for."""
    placed = frame if frame.shape == layout else frame.transpose(2, 0, 1)
    if placed.shape != layout:
        raise DemonstrationError(f"a frame has shape {frame.shape}; the policy expects {layout}")
    return np.ascontiguousarray(placed)
