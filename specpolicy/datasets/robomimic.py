"""Reading demonstrations in robomimic's HDF5 layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
            total += len(episode)
        if not total:
            raise EpisodeError(f"no episodes to write to {path}")
        for key, value in {**(attributes or {}), "env_args": json.dumps(env_args, indent=4), "total": total}.items():
            data.attrs[key] = value
        for key, names in masks.items():
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


def read_attributes(path: str | Path) -> dict[str, Attribute]:
    """Attributes of the group ``data``: ``env_args``, ``total``, and what was given at writing.

    Raises:
        OSError: no readable HDF5 file.
        KeyError: it has no group ``data``.
    """
    h5py = require("h5py", "train")
    with h5py.File(path, "r") as file:
        return {key: _python(value) for key, value in file["data"].attrs.items()}


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """The episodes of a file, in the order of their numbers.

    Raises:
        OSError: no readable HDF5 file.
        KeyError: it has no group ``data``, or an episode has no actions or observations.
    """
    h5py = require("h5py", "train")
    with h5py.File(path, "r") as file:
        data = file["data"]
        for name in sorted(data, key=lambda name: (len(name), name)):
            group = data[name]
            yield Episode(
                actions=group["actions"][:],
                observations={key: values[:] for key, values in group["obs"].items()},
                others={
                    key: values[:]
                    for key, values in group.items()
                    if key != "actions" and isinstance(values, h5py.Dataset)
                },
                next_observations={key: values[:] for key, values in group.get("next_obs", {}).items()},
                attributes={key: _python(value) for key, value in group.attrs.items() if key != "num_samples"},
            )


def _python(value: Any) -> Attribute:
    plain: Attribute = value.item() if hasattr(value, "item") else value
    return plain


class DemonstrationError(ValueError):
    """A demonstration file lacks what is needed or holds what cannot be learned from."""


@dataclass(frozen=True)
class Demonstration:
    """One episode: ``observations`` (T, observation dim) with all vectors joined, ``actions`` (T, action dim).

    ``images`` are those of each camera, (T, H, W, C) bytes. ``others`` are vectors that are not observed, (T, dim).
    ``seed`` names its initial state; None if the file does not tell, as for demonstrations by people. ``taught`` (T,)
    is false where an action is no example: a fault that an expert makes in order to show its repair. None: all are.
    """

    name: str
    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    seed: int | None = None
    taught: NDArray[np.bool_] | None = None
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    others: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class DemonstrationSet:
    """Episodes of one file, split for training and validation."""

    train: list[Demonstration]
    valid: list[Demonstration]


def read_demonstrations(
    path: str | Path,
    keys: Mapping[str, int],
    validation_demos: int = 10,
    images: Mapping[str, tuple[int, ...]] | None = None,
    others: Sequence[str] = (),
) -> DemonstrationSet:
    """Read all episodes of a robomimic file into memory.

    Args:
        path: HDF5 file with ``data/<demo>/{actions, obs/<key>}`` and, if present, ``mask/valid``.
        keys: vectors to read and their lengths; joined in this order.
        images: cameras to read and the shape of one image, (H, W, C) as robomimic stores them.
        others: keys of further vectors to read, of any length.
        validation_demos: how many episodes to hold out; taken from ``mask/valid`` first, then from the end.

    Raises:
        DemonstrationError: the file is missing or no HDF5, a key is missing or has another length, values are not
            finite, or too few episodes are left to train on. The message names the file and the episode.
    """
    h5py = require("h5py", "train")
    path = Path(path)
    if not path.is_file():
        raise DemonstrationError(f"no demonstrations at {path}; set dataset=<file.hdf5> (robomimic layout)")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DemonstrationError(f"{path} is not a readable HDF5 file: {error}") from error
    with file:
        if "data" not in file or not len(file["data"]):
            raise DemonstrationError(f"{path} has no group 'data' with episodes; found {sorted(file)}")
        names = sorted(file["data"], key=lambda name: (len(name), name))
        episodes = {name: _read_episode(path, name, file["data"][name], keys, images or {}, others) for name in names}
        masked = [name.decode() for name in file["mask/valid"][:]] if "mask/valid" in file else []
    held_out = ([name for name in masked if name in episodes] + [n for n in reversed(names) if n not in masked])[
        :validation_demos
    ]
    if len(held_out) >= len(names):
        raise DemonstrationError(f"{path}: {len(names)} episodes, {validation_demos} held out: none left to train on")
    return DemonstrationSet(
        train=[episodes[name] for name in names if name not in held_out],
        valid=[episodes[name] for name in held_out],
    )


def _read_episode(
    path: Path,
    name: str,
    group: object,
    keys: Mapping[str, int],
    images: Mapping[str, tuple[int, ...]],
    others: Sequence[str],
) -> Demonstration:
    where = f"{path}, data/{name}"
    if not hasattr(group, "keys"):
        raise DemonstrationError(
            f"{where} is an array; expected an episode with 'actions' and 'obs'. PushT's replay buffer is converted by "
            "`specpolicy convert task=pusht source=...`"
        )
    for needed in ("actions", "obs"):
        if needed not in group:  # type: ignore[operator]
            raise DemonstrationError(f"{where}: '{needed}' is missing; found {sorted(group)}")  # type: ignore[call-overload]
    actions = np.asarray(group["actions"], dtype=np.float32)  # type: ignore[index]
    stored = group["obs"]  # type: ignore[index]
    missing = [key for key in (*keys, *images, *others) if key not in stored]
    if missing:
        raise DemonstrationError(f"{where}/obs lacks {missing}; found {sorted(stored)}")
    parts = [np.asarray(stored[key], dtype=np.float32) for key in keys]
    for (key, dim), part in zip(keys.items(), parts, strict=True):
        if part.shape != (len(actions), dim):
            raise DemonstrationError(f"{where}/obs/{key} has shape {part.shape}; expected {(len(actions), dim)}")
    observations = np.concatenate(parts, axis=-1) if parts else np.zeros((len(actions), 0), np.float32)
    seen = {key: _read_images(f"{where}/obs/{key}", stored[key], (len(actions), *images[key])) for key in images}
    further = {key: np.asarray(stored[key], dtype=np.float32).reshape(len(stored[key]), -1) for key in others}
    for key, values in further.items():
        if len(values) != len(actions):
            raise DemonstrationError(f"{where}/obs/{key} has {len(values)} rows; expected {len(actions)}")
    if not (np.isfinite(actions).all() and np.isfinite(observations).all() and all(map(_finite, further.values()))):
        raise DemonstrationError(f"{where} contains NaN or infinity; remove or repair this episode")
    seed = group.attrs.get("seed")  # type: ignore[attr-defined]
    taught = np.asarray(group["taught"]) != 0 if "taught" in group else None  # type: ignore[index,operator]
    if taught is not None and taught.shape != (len(actions),):
        raise DemonstrationError(f"{where}/taught has shape {taught.shape}; expected {(len(actions),)}")
    return Demonstration(name, observations, actions, None if seed is None else int(seed), taught, seen, further)


def _finite(values: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(values).all())


def _read_images(where: str, stored: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if tuple(stored.shape) != shape:
        raise DemonstrationError(f"{where} has shape {tuple(stored.shape)}; expected {shape}: steps, then one image")
    if stored.dtype != np.uint8:
        raise DemonstrationError(f"{where} has type {stored.dtype}; expected uint8, an image's bytes from 0 to 255")
    read: NDArray[np.uint8] = stored[:]
    return read
