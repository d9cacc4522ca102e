"""PushT's published human demonstrations, from Diffusion Policy's replay buffer into robomimic's layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.datasets.robomimic import GYM_ENVIRONMENT, Episode, write_demonstrations
from specpolicy.utils.extras import require

_ROWS = {"action": (2,), "state": (5,), "keypoint": (9, 2)}
_ENVIRONMENT = {
    "env_name": "specpolicy_envs:specpolicy/PushT-v0",
    "env_version": "0",
    "type": GYM_ENVIRONMENT,
    "env_kwargs": {},
}


class ReplayBufferError(ValueError):
    """A file is no replay buffer of PushT."""


def convert_pusht(source: str | Path, path: str | Path, images: bool = False) -> int:
    """Write PushT's replay buffer as demonstrations that :func:`specpolicy.training.read_demonstrations` reads.

    Each episode has ``actions`` (T, 2), ``obs/agent_pos`` (T, 2) and ``obs/keypoints`` (T, 18) in pixels, ``states``
    (T, 5) as ``reset(options={"state": ...})`` of the environment takes them, and ``dones`` (T,), 1 at the last step.
    An action is the target that was given when its row's state was seen. Where an episode began as the environment's
    seed of the same number does, as the published ones do, it is marked with that ``seed``.

    Args:
        source: folder ``*.zarr`` as published (unpacked), or the same arrays in an HDF5 file: ``data/action`` (n, 2),
            ``data/state`` (n, 5), ``data/keypoint`` (n, 9, 2), ``meta/episode_ends``.
        path: the HDF5 file to write; one that is there is replaced.
        images: add ``obs/image`` (T, H, W, 3), bytes, from ``data/img`` (n, H, W, 3).

    Returns:
        How many episodes were written.

    Raises:
        ReplayBufferError: the source is missing, cannot be read, or lacks an array or holds one of another shape.
        ImportError: h5py, or for a ``.zarr`` folder zarr, is missing.
    """
    with _opened(Path(source)) as buffer:
        ends, arrays = _checked(Path(source), buffer)
        pictures = _checked_images(Path(source), buffer, len(arrays["action"])) if images else None
        environment = _ENVIRONMENT | ({"env_name": "specpolicy_envs:specpolicy/PushTImage-v0"} if images else {})
        return write_demonstrations(path, _episodes(ends, arrays, pictures), environment)


@contextmanager
def _opened(source: Path) -> Iterator[Mapping[str, Any]]:
    """The buffer's arrays by path, which zarr and h5py both offer."""
    if source.is_dir():
        zarr = require("zarr", "pusht")
        try:
            group = zarr.open_group(str(source), mode="r")
        except Exception as error:
            raise ReplayBufferError(f"{source} is no zarr folder: {error}") from error
        yield group
        return
    h5py = require("h5py", "train")
    if not source.is_file():
        raise ReplayBufferError(f"nothing at {source}; give the unpacked pusht_cchi_v7_replay.zarr of Diffusion Policy")
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        raise ReplayBufferError(
            f"{source} is neither a zarr folder nor an HDF5 file ({error}); unpack an archive first"
        ) from error
    with file:
        yield file


def _checked(source: Path, buffer: Mapping[str, Any]) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """The ends of the episodes and the arrays of :data:`_ROWS`, read."""
    missing = [name for name in ("meta/episode_ends", *(f"data/{name}" for name in _ROWS)) if name not in buffer]
    if missing:
        raise ReplayBufferError(f"{source} lacks {missing}; is it PushT's replay buffer with states and keypoints?")
    arrays = {name: np.asarray(buffer[f"data/{name}"][:], dtype=np.float32) for name in _ROWS}
    ends = np.asarray(buffer["meta/episode_ends"][:], dtype=np.int64)
    for name, row in _ROWS.items():
        if arrays[name].shape[1:] != row:
            raise ReplayBufferError(f"{source}: data/{name} has rows of shape {arrays[name].shape[1:]}, not {row}")
    counts = {name: len(values) for name, values in arrays.items()}
    if not len(ends) or (np.diff(ends, prepend=0) <= 0).any() or set(counts.values()) != {int(ends[-1])}:
        raise ReplayBufferError(
            f"{source}: meta/episode_ends must grow and end at the number of rows {counts}; it holds {ends.tolist()}"
        )
    return ends, arrays


def _checked_images(source: Path, buffer: Mapping[str, Any], count: int) -> Any:
    """The stored images, not read yet: one episode after another is, so that memory holds one."""
    if "data/img" not in buffer:
        raise ReplayBufferError(f"{source} lacks data/img; take the replay buffer with images, or convert without them")
    stored = buffer["data/img"]
    if len(stored.shape) != 4 or stored.shape[0] != count or stored.shape[3] != 3:
        raise ReplayBufferError(
            f"{source}: data/img has shape {tuple(stored.shape)}; expected ({count}, height, width, 3)"
        )
    return stored


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The published images are floats from 0 to 255."""
    return values if values.dtype == np.uint8 else np.rint(values).clip(0, 255).astype(np.uint8)


def _episodes(
    ends: NDArray[np.int64], arrays: dict[str, NDArray[np.float32]], pictures: Any = None
) -> Iterator[Episode]:
    for number, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        part = {name: values[begin:end] for name, values in arrays.items()}
        steps = int(end - begin)
        yield Episode(
            actions=part["action"],
            observations={
                "agent_pos": part["state"][:, :2],
                "keypoints": part["keypoint"].reshape(steps, -1),
                **({} if pictures is None else {"image": _bytes(np.asarray(pictures[begin:end]))}),
            },
            others={"states": part["state"], "dones": (np.arange(steps) == steps - 1).astype(np.int64)},
            attributes={"seed": number} if _begins_like_seed(number, part["state"][0]) else {},
        )


def _begins_like_seed(seed: int, state: NDArray[np.float32]) -> bool:
    """Whether the finger is where Diffusion Policy's environment first puts it."""
    return bool((np.random.RandomState(seed).randint(50, 450, 2) == state[:2]).all())
