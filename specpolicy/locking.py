"""One writer to a results folder; the operating system lets go of the lock when the writer dies."""

from __future__ import annotations

from pathlib import Path

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
