"""Reading back what :mod:`.layout` writes, whole and as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specpolicy._extras import require

from .layout import Attribute, Episode


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
