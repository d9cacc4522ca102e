"""Atomic writes, folder locks, and differences of settings."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from specpolicy.utils.errors import one_line

_MOST_COMPRESSED = 100

DAMAGED = (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
"""What reading a damaged or hostile file of plain data raises: nesting, numbers and shapes may be anything."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces ``path`` if the block succeeds and vanishes if not.

    The content reaches the disk before the name does.

    Args:
        path: the file to write or to replace.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class FolderInUse(RuntimeError):
    """Another process is writing to this folder."""


class FolderLock:
    """Keep other writers out of a folder until :meth:`release`.

    Args:
        folder: which one; it gets a file ``.lock``.

    Raises:
        FolderInUse: another process has it.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = FileLock(folder / ".lock", thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise FolderInUse(
                f"another process is writing to {folder}; wait for it, or choose another folder"
            ) from None

    def release(self) -> None:
        """Let others write."""
        self._lock.release()


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings, keys joined by dots.

    Args:
        tree: the mapping.
        prefix: of every key.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the entries in which two nested mappings differ.

    Args:
        there: what was written before.
        now: what was asked for.

    Returns:
        A line for each entry, sorted by its name; none if they are equal.
    """
    mine, theirs = flatten(there), flatten(now)
    values = {key: (mine.get(key, _ABSENT), theirs.get(key, _ABSENT)) for key in sorted(mine.keys() | theirs.keys())}
    return [f"  {key}: {before!r} there, {after!r} now" for key, (before, after) in values.items() if before != after]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an archive of arrays (``.npz``); objects are never unpickled.

    Args:
        path: the archive.

    Returns:
        The arrays by name.

    Raises:
        ValueError: it is missing, damaged or no archive, or would take far more memory than the file is large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size, stored = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if size > _MOST_COMPRESSED * stored + 2**20:
            raise ValueError(f"it would take {size / 2**20:.0f} MiB from a file of {stored / 2**20:.1f} MiB")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # zip, zlib and numpy fail in many ways on a damaged archive
        raise ValueError(one_line(error, 300)) from error
