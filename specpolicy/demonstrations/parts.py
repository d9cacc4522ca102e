"""The work folder of a recording: attempts that are done, each saved as soon as it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from specpolicy.atomic import atomic_path
from specpolicy.differences import differences
from specpolicy.locking import FolderLock

from .layout import Episode, write_demonstrations
from .reading import read_attributes, read_episodes
from .stage import Attempt

IDENTITY = "recording.json"
_USED = "used"  # the result is written: what is left of the folder is only to be removed


class OtherRecording(ValueError):
    """What is there was recorded with other settings or by other software."""


class Parts:
    """Hold a work folder, making it if need be. Use it as a context manager.

    ::

        recording.json    settings and software of the recording
        seed-12.hdf5      a success, a demonstration file of its own
        seed-13.json      a failure, and why

    Args:
        folder: where.
        identity: settings and software; all parts must come from the same.
        restart: empty a folder of another identity instead of refusing it.

    Raises:
        OtherRecording: the folder's identity is another one; the message says in what.
        FolderInUse: another process is recording there.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], restart: bool = False) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(folder)
        try:
            self._take_up(restart)
        except BaseException:
            self._lock.release()
            raise

    def attempts(self) -> dict[int, str | None]:
        """Seeds that are done: None after a success, else why it failed."""
        failed = {
            _seed(path): json.loads(path.read_text("utf-8"))["failure"] for path in self.folder.glob("seed-*.json")
        }
        return failed | {_seed(path): None for path in self.folder.glob("seed-*.hdf5")}

    def save(self, attempt: Attempt) -> None:
        """Save an attempt, at once or not at all."""
        if attempt.episode is not None:
            path = self._episode(attempt.seed)
            write_demonstrations(path, [attempt.episode], attempt.env_args, valid_every=0, compression=1)
        else:
            with atomic_path(self.folder / f"seed-{attempt.seed}.json") as path:
                path.write_text(json.dumps({"failure": attempt.failure}), "utf-8")

    def episode(self, seed: int) -> Episode:
        """A saved success."""
        return next(read_episodes(self._episode(seed)))

    def env_args(self, seed: int) -> dict[str, Any]:
        """What robomimic makes the environment of a saved success from."""
        arguments: dict[str, Any] = json.loads(str(read_attributes(self._episode(seed))["env_args"]))
        return arguments

    def remove(self) -> None:
        """Remove the folder, now that its result is written."""
        (self.folder / _USED).touch()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let others record there."""
        self._lock.release()

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _episode(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.hdf5"

    def _take_up(self, restart: bool) -> None:
        path = self.folder / IDENTITY
        if path.exists():
            lines = differences(json.loads(path.read_text("utf-8")), self.identity)
            if lines and not restart:
                raise OtherRecording(
                    f"{self.folder} holds an unfinished recording of another kind:\n" + "\n".join(lines) + "\n"
                    "Set these as they were to go on with it, choose another out=, or drop it with overwrite=true."
                )
        if not path.exists() or lines:
            for part in self.folder.glob("seed-*"):
                part.unlink()
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.identity, indent=2) + "\n", "utf-8")


def remove_used(folder: Path) -> None:
    """Remove what a kill left of a folder whose result had been written; leave any other alone."""
    if (folder / _USED).exists():
        shutil.rmtree(folder)


def _seed(path: Path) -> int:
    match = re.fullmatch(r"seed-(\d+)", path.stem)
    if match is None:
        raise OtherRecording(f"{path} does not belong into the work folder of a recording; move it away")
    return int(match[1])
