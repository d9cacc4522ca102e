"""Demonstrations in robomimic's HDF5 layout: one writer, one reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from specpolicy.utils.checks import shown
from specpolicy.utils.errors import one_line
from specpolicy.utils.extras import require
from specpolicy.utils.files import atomic_path

Attribute = str | bool | int | float

ROBOSUITE_ENVIRONMENT, GYM_ENVIRONMENT = 1, 2
"""robomimic's codes for ``env_args["type"]``."""

_CHUNK_BYTES = 2**18  # read and compressed at once: a whole low-dimensional episode, a few images
_LIBRARY = (
    "v110",
    "v110",
)  # a fixed format: the newest would change with the library, the oldest takes 30 KB more an episode


class EpisodeError(ValueError):
    """An episode cannot be written as a demonstration."""


@dataclass(frozen=True)
class Episode:
    """One demonstration of ``T`` steps, stored with the dtypes that its arrays have.

    Attributes:
        actions: what a policy learns, shape ``(T, action dim)``.
        observations: what was seen before each action, by key, shapes ``(T, ...)``; images are ``(T, H, W, C)`` uint8.
        others: further arrays of the episode, shapes ``(T, ...)``. robomimic knows ``states``, ``rewards``, ``dones``.
        next_observations: what was seen after each action, the same keys; may be empty.
        attributes: plain values about the episode, e.g. ``seed``; ``num_samples`` is added. robomimic's play-back reads
            robosuite's scene from ``model_file``.
    """

    actions: NDArray[Any]
    observations: Mapping[str, NDArray[Any]]
    others: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    next_observations: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if self.actions.ndim != 2 or not steps:
            raise EpisodeError(f"actions have shape {self.actions.shape}; expected (steps, action dim), steps > 0")
        for name, values in self.arrays().items():
            if len(values) != steps:
                raise EpisodeError(f"{name} has {len(values)} rows; expected one for each of {steps} actions")
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                raise EpisodeError(f"{name} contains NaN or infinity; nothing can be learned from this episode")
        if not self.observations:
            raise EpisodeError("there are no observations")
        if self.next_observations and self.next_observations.keys() != self.observations.keys():
            raise EpisodeError(
                f"next_observations are {sorted(self.next_observations)}, observations {sorted(self.observations)}"
            )

    def __len__(self) -> int:
        return len(self.actions)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything with a row for each step, by its path in the episode's HDF5 group."""
        return {
            "actions": self.actions,
            **self.others,
            **{f"obs/{key}": values for key, values in self.observations.items()},
            **{f"next_obs/{key}": values for key, values in self.next_observations.items()},
        }


def write_demonstrations(
    path: str | Path,
    episodes: Iterable[Episode],
    env_args: Mapping[str, Any],
    attributes: Mapping[str, Attribute] | None = None,
    valid_every: int = 10,
    compression: int = 4,
    masks_of: Callable[[Episode], Iterable[str]] = lambda episode: (),
) -> int:
    """Write episodes as ``demo_0``, ``demo_1``, … in the given order. The file appears when it is complete.

    Args:
        path: the HDF5 file; one that is there is replaced.
        episodes: taken one after another, so that not all of them need to be in memory.
        env_args: from what robomimic makes the environment: ``env_name``, ``env_version``, ``type`` (1 robosuite,
            2 gym), ``env_kwargs``.
        attributes: further attributes of the group ``data``.
        valid_every: with 10, episodes 9, 19, … go to ``mask/valid`` and the others to ``mask/train``; 0 keeps all for
            training.
        compression: gzip's level, 0 to 9; values that belong together are regrouped byte by byte first.
        masks_of: further filter keys that list an episode.

    Returns:
        How many episodes were written.

    Raises:
        EpisodeError: there is not one episode, or one has other arrays than the first; nothing is written then.
        ImportError: h5py is missing.
    """
    h5py = require("h5py", "train")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    total, form = 0, None
    masks: dict[str, list[str]] = {"train": [], "valid": []}
    others: dict[str, list[str]] = {}
    with atomic_path(path) as temporary, h5py.File(temporary, "w", libver=_LIBRARY) as file:
        data = file.create_group("data")
        for number, episode in enumerate(episodes):
            shapes = {name: values.shape[1:] for name, values in episode.arrays().items()}
            form = form or shapes
            if shapes != form:
                raise EpisodeError(f"episode {number} has arrays {shapes}; expected, as in the first one, {form}")
            name = f"demo_{number}"
            _write_episode(data.create_group(name), episode, compression)
            masks["valid" if valid_every and number % valid_every == valid_every - 1 else "train"].append(name)
            for key in masks_of(episode):
                others.setdefault(key, []).append(name)
            total += len(episode)
        if not total:
            raise EpisodeError(f"no episodes to write to {path}")
        for key, value in {**(attributes or {}), "env_args": json.dumps(env_args, indent=4), "total": total}.items():
            data.attrs[key] = value
        for key, names in {**masks, **others}.items():
            file.create_dataset(f"mask/{key}", data=np.array(names, dtype="S"), track_times=False)
    return sum(map(len, masks.values()))


def _write_episode(group: Any, episode: Episode, compression: int) -> None:
    for name, values in sorted(episode.arrays().items()):
        row = max(1, values[0].nbytes)
        chunks = (min(len(values), max(1, _CHUNK_BYTES // row)), *values.shape[1:])
        group.create_dataset(
            name,
            data=values,
            chunks=chunks,
            shuffle=True,
            compression="gzip",
            compression_opts=compression,
            track_times=False,
        )
    for key, value in sorted({**episode.attributes, "num_samples": len(episode)}.items()):
        group.attrs[key] = value


class DemonstrationError(ValueError):
    """A demonstration file lacks what is needed or holds what cannot be learned from."""


_READING = (OSError, RuntimeError, KeyError, TypeError, ValueError)  # what h5py raises over damaged content


class DemonstrationFile:
    """Open a file of robomimic's layout for reading. Use it as a context manager.

    Whatever is missing, damaged or of another type is a :class:`DemonstrationError` of one line that names the file,
    the episode and the dataset. Content that was never written, which HDF5 gives back as zeros, is an error, too.

    Args:
        path: the HDF5 file.

    Attributes:
        path: the HDF5 file.
        names: the episodes, in the order of their numbers.

    Raises:
        DemonstrationError: the file is missing, no HDF5, or has no group ``data`` with episodes.
        ImportError: h5py is missing; the message names the extra.
    """

    def __init__(self, path: str | Path) -> None:
        self._h5py = require("h5py", "train")
        self.path = Path(path)
        if not self.path.is_file():
            raise DemonstrationError(f"no demonstrations at {self.path}; set dataset=<file.hdf5> (robomimic layout)")
        try:
            self._file = self._h5py.File(self.path, "r")
        except OSError as error:
            raise DemonstrationError(f"{self.path} is not a readable HDF5 file: {error}") from error
        try:
            data = self._file.get("data")
            if not isinstance(data, self._h5py.Group) or not len(data):
                found = sorted(self._file)
                raise DemonstrationError(f"{self.path} has no group 'data' with episodes; found {shown(found)}")
            self._data = data
            self.names = sorted(data, key=lambda name: (len(name), name))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> DemonstrationFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def refuse(self, place: str, message: str, cause: Exception | None = None) -> NoReturn:
        """Raise a :class:`DemonstrationError` about a place in the file."""
        raise DemonstrationError(f"{self.path}, {place} {message}") from cause

    def attributes(self, episode: str | None = None) -> dict[str, Attribute]:
        """Read the attributes of the group ``data``, or of an episode, as plain values."""
        place = "data" if episode is None else f"data/{episode}"
        try:
            group = self._data if episode is None else self._group(episode)
            return {key: _plain(value) for key, value in group.attrs.items()}
        except _READING as error:
            if isinstance(error, DemonstrationError):
                raise
            self.refuse(place, f"attributes cannot be read ({one_line(error)})", error)

    def masks(self) -> dict[str, list[str]]:
        """Read the filter keys: for each name in the group ``mask``, the episodes that it lists."""
        if "mask" not in self._file:
            return {}
        group = self._file["mask"]
        if not isinstance(group, self._h5py.Group):
            self.refuse("mask", "is an array; expected a group with a list of episodes for each filter key")
        masks: dict[str, list[str]] = {}
        for key in group:
            place, stored = f"mask/{key}", group[key]
            if not isinstance(stored, self._h5py.Dataset) or stored.ndim != 1 or (
                len(stored) and stored.dtype.kind not in "SO"
            ):  # fmt: skip
                self.refuse(place, "expected a list of names of episodes, as text")
            try:
                listed = [name.decode() if isinstance(name, bytes) else str(name) for name in stored[:]]
            except _READING as error:
                self.refuse(place, f"cannot be read ({one_line(error)})", error)
            if absent := [name for name in listed if name not in self._data]:
                self.refuse(place, f"names {shown(absent)}, which the group 'data' does not have")
            masks[key] = list(dict.fromkeys(listed))  # some tools write a name twice
        return masks

    def keys(self, episode: str, group: str = "") -> list[str]:
        """List the datasets of an episode, or of a group in it such as ``obs``; none if there is no such group."""
        found = self._group(episode)
        if group:
            found = found.get(group, {})
            if not hasattr(found, "keys"):
                self.refuse(f"data/{episode}/{group}", "is an array; expected a group of arrays")
        try:
            return [key for key in found if not isinstance(found.get(key), self._h5py.Group)]
        except RuntimeError as error:
            self.refuse(f"data/{episode}/{group}", f"holds a link that leads nowhere ({one_line(error)})", error)

    def read(self, episode: str, name: str) -> NDArray[Any]:
        """Read one dataset of an episode, such as ``actions`` or ``obs/object``: numbers, with a row for each step."""
        place, group = f"data/{episode}/{name}", self._group(episode)
        try:
            stored = group.get(name)
        except RuntimeError as error:  # links that lead to themselves
            self.refuse(place, f"cannot be found ({one_line(error)}); remove this link", error)
        if not isinstance(stored, self._h5py.Dataset):
            self.refuse(f"data/{episode}:", f"{name!r} is missing; found {shown(sorted(group))}")
        if stored.dtype.kind not in "biuf":
            self.refuse(place, f"holds {_kind(stored.dtype)}; expected numbers")
        if stored.ndim == 0:
            self.refuse(place, "holds a single number; expected one row for each step")
        if stored.is_virtual or stored.external:
            self.refuse(place, "lies in other files; copy it into one file first, e.g. with h5repack")
        if stored.size and not _is_written(stored):
            self.refuse(place, f"has shape {stored.shape}, but not all of its content was written; record it again")
        try:
            values: NDArray[Any] = stored[:]
        except _READING as error:
            self.refuse(place, f"is damaged ({one_line(error)}); copy the file again, or remove this episode", error)
        return values

    def _group(self, episode: str) -> Any:
        try:
            group = self._data.get(episode)
        except RuntimeError as error:
            self.refuse(f"data/{episode}", f"cannot be found ({one_line(error)}); remove this link", error)
        if group is None:
            self.refuse(f"data/{episode}", "is a link to what is not there; copy what it means into this file")
        if not isinstance(group, self._h5py.Group):
            self.refuse(
                f"data/{episode}",
                "is an array; expected an episode with 'actions' and 'obs'. PushT's replay buffer is converted by "
                "`specpolicy convert task=pusht source=...`",
            )
        return group


def read_attributes(path: str | Path) -> dict[str, Attribute]:
    """Read the attributes of the group ``data``: ``env_args``, ``total``, and what was given at writing.

    Args:
        path: the HDF5 file.

    Returns:
        Plain values by name.

    Raises:
        DemonstrationError: the file is missing or no demonstration file.
    """
    with DemonstrationFile(path) as file:
        return file.attributes()


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """Read the episodes of a file with everything that they hold, in the order of their numbers.

    Args:
        path: the HDF5 file.

    Yields:
        One episode after another.

    Raises:
        DemonstrationError: the file is missing or damaged, or an episode has no actions or observations.
    """
    with DemonstrationFile(path) as file:
        for name in file.names:
            attributes = file.attributes(name)
            attributes.pop("num_samples", None)
            try:
                episode = Episode(
                    actions=file.read(name, "actions"),
                    observations={key: file.read(name, f"obs/{key}") for key in file.keys(name, "obs")},
                    others={key: file.read(name, key) for key in file.keys(name) if key != "actions"},
                    next_observations={key: file.read(name, f"next_obs/{key}") for key in file.keys(name, "next_obs")},
                    attributes=attributes,
                )
            except EpisodeError as error:
                file.refuse(f"data/{name}:", str(error), error)
            yield episode


def _plain(value: Any) -> Attribute:
    plain: Attribute = value.item() if getattr(value, "size", 0) == 1 and hasattr(value, "item") else value
    return plain.decode() if isinstance(plain, bytes) else plain


def _kind(dtype: np.dtype[Any]) -> str:
    return "text" if dtype.kind in "SUO" else f"values of type {dtype}"


def _is_written(dataset: Any) -> bool:
    """Tell whether all content of a dataset is in the file: HDF5 reads zeros where it is not."""
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size() > 0)
    expected = 1
    for length, chunk in zip(dataset.shape, dataset.chunks, strict=True):
        expected *= -(-length // chunk)
    return bool(dataset.id.get_num_chunks() == expected)
