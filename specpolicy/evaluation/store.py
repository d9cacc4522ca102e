"""A results folder: killed at any moment, it loses next to nothing and doubles nothing.

::

    manifest.json               what the results are of, and every run that added to them
    episodes-….parquet          shards of episode records, only ever added to
    episodes-….parquet.corrupt  shards that could not be read, set aside

Read the shards with anything that reads parquet, e.g. ``duckdb -c "select sampler, avg(success::int) from
'results/*.parquet' group by 1"`` after :meth:`ResultStore.compact` (before it, an episode can be in two shards).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from specpolicy.locking import FolderLock

from .episodes import EpisodeKey, EpisodeRecord
from .manifest import MANIFEST, Manifest
from .shards import read_shards, shard_paths, write_shard


class ResultStore:
    """Open a results folder to add to it, making it if need be. Use as a context manager.

    Args:
        folder: where the results are.
        configuration: what they are of; see :class:`Manifest`.
        samplers: recipes of this run's samplers by name; include ``"exact"`` so that the folder alone makes a table.
        provenance: where and with what this run is made.
        flush_every_s: records that come faster than this are written together. A kill loses at most those of the
            last burst, and they are run again.

    Raises:
        ConfigurationMismatch: the folder holds results of another configuration.
        ManifestError: its manifest cannot be read.
        FolderInUse: another process is writing to it.
    """

    def __init__(
        self,
        folder: str | Path,
        configuration: Mapping[str, Any],
        samplers: Mapping[str, Mapping[str, Any]] | None = None,
        provenance: Mapping[str, Any] | None = None,
        flush_every_s: float = 5.0,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        run = Manifest(
            dict(configuration),
            {name: dict(recipe) for name, recipe in (samplers or {}).items()},
            [dict(provenance)] if provenance else [],
        )
        self._lock = FolderLock(self.folder)
        try:
            exists = (self.folder / MANIFEST).exists() or bool(shard_paths(self.folder))
            self.manifest = Manifest.read(self.folder).joined(run, self.folder) if exists else run
            self.manifest.write(self.folder)
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink()
            self._records = merge({}, read_shards(self.folder, set_aside=True))
        except BaseException:
            self._lock.release()
            raise
        self._buffer: list[EpisodeRecord] = []
        self._flush_every_s, self._flushed_at = flush_every_s, float("-inf")

    def done(self, count_crashed: bool = True) -> set[EpisodeKey]:
        """Keys of the finished episodes; with ``count_crashed=False`` crashed ones are to be run again."""
        return {key for key, record in self._records.items() if count_crashed or not record.crashed}

    def records(self) -> list[EpisodeRecord]:
        """Every finished episode once, sorted by sampler, seed and repeat."""
        return [self._records[key] for key in sorted(self._records)]

    def append(self, record: EpisodeRecord) -> None:
        """Add a finished episode; see ``flush_every_s`` for when it is on disk."""
        self._buffer.append(record)
        merge(self._records, [record])
        if time.monotonic() - self._flushed_at >= self._flush_every_s:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        if self._buffer:
            write_shard(self.folder, self._buffer)
            self._buffer = []
        self._flushed_at = time.monotonic()

    def compact(self) -> None:
        """Merge all shards into one without duplicates. Killed in between, both are there and still count once."""
        self.flush()
        old = shard_paths(self.folder)
        if len(old) > 1:
            write_shard(self.folder, self.records())
            for path in old:
                path.unlink()

    def close(self) -> None:
        """Write what is left, merge the shards, and let others write."""
        try:
            self.compact()
        finally:
            self._lock.release()

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_results(folder: str | Path) -> tuple[list[EpisodeRecord], Manifest]:
    """Every finished episode of a folder once, sorted, and its manifest; works while another process writes.

    Raises:
        ManifestError: it is not a results folder, or its manifest is damaged.
    """
    manifest = Manifest.read(Path(folder))
    records = merge({}, read_shards(Path(folder)))
    return [records[key] for key in sorted(records)], manifest


def merge(kept: dict[EpisodeKey, EpisodeRecord], records: Iterable[EpisodeRecord]) -> dict[EpisodeKey, EpisodeRecord]:
    """Add records to ``kept`` and return it. The first of an episode stays, but a crash gives way to a non-crash."""
    for record in records:
        before = kept.get(record.key)
        if before is None or (before.crashed and not record.crashed):
            kept[record.key] = record
    return kept
