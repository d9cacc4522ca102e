"""Saying in what two settings differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces ``path`` if the block succeeds, and vanishes if not.

    The content reaches the disk before the name does.
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


try:
    import fcntl
except ImportError:  # not a POSIX system: two writers only waste work there, since duplicates count once
    fcntl = None  # type: ignore[assignment]


class FolderInUse(RuntimeError):
    """Another process is writing to this folder."""


class FolderLock:
    """Hold a folder until :meth:`release`. Raises :class:`FolderInUse` if someone else does."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / ".lock", "w")  # noqa: SIM115 - held open as long as the lock
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise FolderInUse(
                    f"another process is writing to {folder}; wait for it, or choose another folder"
                ) from None

    def release(self) -> None:
        """Let others write."""
        self._file.close()


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each entry in which two nested mappings differ, sorted by its name; empty if they are equal."""
    mine, theirs = flatten(there), flatten(now)
    values = {key: (mine.get(key, _ABSENT), theirs.get(key, _ABSENT)) for key in sorted(mine.keys() | theirs.keys())}
    return [f"  {key}: {before!r} there, {after!r} now" for key, (before, after) in values.items() if before != after]
