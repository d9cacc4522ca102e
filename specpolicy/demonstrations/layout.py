"""Writing demonstrations in robomimic's HDF5 layout.

::

    data                        attributes: env_args (JSON), total (steps of all episodes)
    data/demo_0/actions         (T, action dim)
    data/demo_0/obs/<key>       (T, ...), what was seen before each action
    data/demo_0/next_obs/<key>  (T, ...), what was seen after it; optional
    data/demo_0/taught          (T,), 0 where an expert errs on purpose: training leaves such actions out; optional
    data/demo_0/<other>         (T, ...), e.g. states, rewards, dones
    mask/train, mask/valid      names of episodes

The same episodes give the same bytes, whenever and wherever (with the same HDF5 and zlib) the file is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy._extras import require

from ..atomic import atomic_path

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
