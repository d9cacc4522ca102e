"""Reading demonstrations in robomimic's HDF5 layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specpolicy._extras import require


class DemonstrationError(ValueError):
    """A demonstration file lacks what is needed or holds what cannot be learned from."""


@dataclass(frozen=True)
class Demonstration:
    """One episode: ``observations`` (T, observation dim) with all keys joined, ``actions`` (T, action dim).

    ``seed`` names its initial state; None if the file does not tell, as for demonstrations by people. ``taught`` (T,)
    is false where an action is no example: a fault that an expert makes in order to show its repair. None: all are.
    """

    name: str
    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    seed: int | None = None
    taught: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class DemonstrationSet:
    """Episodes of one file, split for training and validation."""

    train: list[Demonstration]
    valid: list[Demonstration]


def read_demonstrations(path: str | Path, keys: dict[str, int], validation_demos: int = 10) -> DemonstrationSet:
    """Read all episodes of a robomimic file.

    Args:
        path: HDF5 file with ``data/<demo>/{actions, obs/<key>}`` and, if present, ``mask/valid``.
        keys: observation keys to read and their lengths; joined in this order.
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
        episodes = {name: _read_episode(path, name, file["data"][name], keys) for name in names}
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


def _read_episode(path: Path, name: str, group: object, keys: dict[str, int]) -> Demonstration:
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
    missing = [key for key in keys if key not in stored]
    if missing:
        raise DemonstrationError(f"{where}/obs lacks {missing}; found {sorted(stored)}")
    parts = [np.asarray(stored[key], dtype=np.float32) for key in keys]
    for (key, dim), part in zip(keys.items(), parts, strict=True):
        if part.shape != (len(actions), dim):
            raise DemonstrationError(f"{where}/obs/{key} has shape {part.shape}; expected {(len(actions), dim)}")
    observations = np.concatenate(parts, axis=-1)
    if not (np.isfinite(actions).all() and np.isfinite(observations).all()):
        raise DemonstrationError(f"{where} contains NaN or infinity; remove or repair this episode")
    seed = group.attrs.get("seed")  # type: ignore[attr-defined]
    taught = np.asarray(group["taught"]) != 0 if "taught" in group else None  # type: ignore[index,operator]
    if taught is not None and taught.shape != (len(actions),):
        raise DemonstrationError(f"{where}/taught has shape {taught.shape}; expected {(len(actions),)}")
    return Demonstration(name, observations, actions, None if seed is None else int(seed), taught)
