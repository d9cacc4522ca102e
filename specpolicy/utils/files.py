"""Atomic writes, folder locks, and differences of settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


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
