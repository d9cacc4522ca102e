"""A results folder: a manifest and a parquet dataset of episodes, written so that a kill loses nothing that has ended.

::

    manifest.json               what the results are of, and every run that added to them
    episodes-….parquet          shards of episodes; each run writes its own and never touches another's
    episodes-….parquet.corrupt  shards that could not be read, set aside

An episode is on disk as soon as it has ended. The shards are one dataset for anything that reads parquet, e.g.
``duckdb -c "select sampler, avg(success::int) from 'results/*.parquet' group by 1"``. They are read here with pyarrow,
which verifies the checksum of every page: polars and duckdb do not, and read most flipped bits as other numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from specpolicy.evaluation.manifest import MANIFEST, Manifest, ResultsError, written
from specpolicy.policies.protocols import Observation
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult
from specpolicy.utils.errors import one_line
from specpolicy.utils.files import FolderLock, read_arrays

OBSERVATIONS = "observations.npz"
_SHARD_EPISODES = 256  # in a shard at most, which is written again with every episode
_DERIVED = ("crashed", "chunks", "mean_passes")  # written for those who query the files, computed when read
_DIGEST = b"episodes_sha256"
_COUNTER = itertools.count()


class CorruptShardWarning(UserWarning):
    """A shard could not be read; it was set aside and its episodes count as not yet run."""


@cache
def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("sampler", pa.string()),
            ("seed", pa.int64()),
            ("repeat", pa.int64()),
            ("success", pa.bool_()),
            ("crashed", pa.bool_()),
            ("error", pa.string()),
            ("steps", pa.int64()),
            ("return_", pa.float64()),
            ("chunks", pa.int64()),
            ("mean_passes", pa.float64()),
            ("passes", pa.list_(pa.int64())),
            ("evaluations", pa.int64()),
            ("duration_s", pa.float64()),
        ]
    )


def new_shard(folder: Path) -> Path:
    """Choose the path of a new shard; names sort by time.

    Args:
        folder: the results folder.
    """
    return folder / f"episodes-{time.time_ns():020d}-{os.getpid()}-{next(_COUNTER)}.parquet"


def write_shard(path: Path, records: Iterable[EpisodeResult]) -> Path:
    """Write episodes to a shard, completely or not at all; one that is there is replaced.

    Args:
        path: see :func:`new_shard`.
        records: all episodes of the shard.

    Returns:
        The path.

    Raises:
        ResultsError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    rows = [{name: getattr(record, name) for name in schema.names} for record in records]
    table = pa.Table.from_pylist(rows, schema=schema)
    table = table.replace_schema_metadata({_DIGEST: _digest(table.drop_columns(list(_DERIVED)).to_pylist())})
    with written(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
    return path


def _digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def shard_paths(folder: Path) -> list[Path]:
    """List all shards, oldest first.

    Args:
        folder: the results folder.
    """
    return sorted(folder.glob("episodes-*.parquet"))


def read_shards(folder: Path, set_aside: bool = False) -> list[EpisodeResult]:
    """Read every episode of every readable shard, oldest first, duplicates included.

    A shard that cannot be read is left out with a :class:`CorruptShardWarning` that names it.

    Args:
        folder: the results folder.
        set_aside: rename such shards to ``….corrupt``; for the writer of the folder, who runs their episodes again.
    """
    import pyarrow as pa

    records: list[EpisodeResult] = []
    for path in shard_paths(folder):
        try:
            records += _read(path)
        except FileNotFoundError:  # its writer has just set it aside
            continue
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            consequence = "it was left out"
            if set_aside:
                aside = path.with_name(path.name + ".corrupt")
                path.replace(aside)
                consequence = f"it is now {aside.name}, and its episodes will be run again"
            reason = " ".join(str(error).split())
            warnings.warn(f"{path} cannot be read ({reason}); {consequence}", CorruptShardWarning, stacklevel=3)
    return records


def _read(path: Path) -> list[EpisodeResult]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    if not table.schema.equals(_schema()):
        raise TypeError("its columns are not those of an episode")
    table = table.drop_columns(list(_DERIVED))
    rows = table.to_pylist()
    digest = (table.schema.metadata or {}).get(_DIGEST)
    if digest is not None and digest.decode("ascii", "replace") != _digest(rows):
        raise ValueError("its content is not what was written")
    if any(value is None for row in rows for name, value in row.items() if name != "error"):
        raise TypeError("an episode lacks a value")
    return [EpisodeResult(**{**row, "passes": tuple(row["passes"])}) for row in rows]


def write_observations(observations: Sequence[Observation], folder: Path) -> None:
    """Write observations completely or not at all.

    Args:
        observations: by key arrays of shape ``(1, n_obs_steps, dim)``.
        folder: the results folder.

    Raises:
        ResultsError: they cannot be written.
    """
    stacked = {name: np.concatenate([each[name] for each in observations]) for name in observations[0]}
    with written(folder / OBSERVATIONS) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **stacked)


def read_observations(folder: Path) -> list[Observation]:
    """Read what :func:`write_observations` wrote, one by one; none if it wrote nothing.

    Args:
        folder: the results folder.

    Raises:
        ResultsError: the file is damaged.
    """
    path = folder / OBSERVATIONS
    if not path.exists():
        return []
    try:
        stacked = read_arrays(path)
        counts = {len(part) for part in stacked.values()}
        if len(counts) != 1 or any(part.dtype.kind not in "fiub" for part in stacked.values()):
            raise ValueError("expected arrays of numbers with as many rows each")
    except (TypeError, ValueError) as error:
        reason = one_line(error)
        raise ResultsError(f"{path} cannot be read ({reason}): delete it, and the next run records new ones") from error
    return [{name: part[row : row + 1] for name, part in stacked.items()} for row in range(counts.pop())]


class ObservationKeeper:
    """Writes the observations of a run beside its episodes; a folder that has some from an earlier run keeps those.

    Args:
        folder: the results folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._earlier = (folder / OBSERVATIONS).exists()

    def keep(self, observations: Sequence[Observation]) -> None:
        """Write what the run has recorded so far.

        Args:
            observations: by key arrays of shape ``(1, n_obs_steps, dim)``.
        """
        if observations and not self._earlier:
            write_observations(observations, self._folder)


class ResultStore:
    """Open a results folder to add to it, making it if need be. Use as a context manager.

    Args:
        folder: where the results are.
        configuration: what they are of; see :class:`Manifest`.
        samplers: recipes of this run's samplers by name; include ``"exact"`` so that the folder alone makes a table.
        provenance: where and with what this run is made.
        analysis: how results are to be judged; see :class:`Manifest`.

    Raises:
        ConfigurationMismatch: the folder holds results of another configuration.
        ManifestError: its manifest cannot be read.
        FolderInUse: another process is writing to it.
        ResultsError: it cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        configuration: Mapping[str, Any],
        samplers: Mapping[str, Mapping[str, Any]] | None = None,
        provenance: Mapping[str, Any] | None = None,
        analysis: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        run = Manifest(
            dict(configuration),
            {name: dict(recipe) for name, recipe in (samplers or {}).items()},
            [dict(provenance)] if provenance else [],
            dict(analysis or {}),
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder)
        except OSError as error:
            raise ResultsError(
                f"{self.folder} cannot hold results ({error.strerror or error}); give another folder with out="
            ) from error
        try:
            exists = (self.folder / MANIFEST).exists() or bool(shard_paths(self.folder))
            self.manifest = Manifest.read(self.folder).joined(run, self.folder) if exists else run
            self.manifest.write(self.folder)
            for unfinished in self.folder.glob(".*.tmp"):
                unfinished.unlink()
            self._records = merge({}, read_shards(self.folder, set_aside=True))
        except BaseException:
            self._lock.release()
            raise
        self._shard: list[EpisodeResult] = []
        self._path = new_shard(self.folder)

    def done(self, count_crashed: bool = True) -> set[EpisodeKey]:
        """List the keys of the finished episodes.

        Args:
            count_crashed: whether crashed episodes count as finished, or are to be run again.
        """
        return {key for key, record in self._records.items() if count_crashed or not record.crashed}

    def records(self) -> list[EpisodeResult]:
        """List every finished episode once, sorted by sampler, seed and repeat."""
        return [self._records[key] for key in sorted(self._records)]

    def append(self, record: EpisodeResult) -> None:
        """Add a finished episode; when this returns, it is on disk.

        Args:
            record: the episode.

        Raises:
            ResultsError: it cannot be written; the episodes before it are.
        """
        if len(self._shard) >= _SHARD_EPISODES:
            self._shard, self._path = [], new_shard(self.folder)
        write_shard(self._path, [*self._shard, record])
        self._shard.append(record)
        merge(self._records, [record])

    def close(self) -> None:
        """Let others write."""
        self._lock.release()

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_results(folder: str | Path) -> tuple[list[EpisodeResult], Manifest]:
    """Read a results folder; works while another process writes to it.

    Args:
        folder: as written by :class:`ResultStore`.

    Returns:
        Every finished episode once, sorted by sampler, seed and repeat, and the manifest.

    Raises:
        ManifestError: it is not a results folder, or its manifest is damaged.
    """
    manifest = Manifest.read(Path(folder))
    records = merge({}, read_shards(Path(folder)))
    return [records[key] for key in sorted(records)], manifest


def merge(kept: dict[EpisodeKey, EpisodeResult], records: Iterable[EpisodeResult]) -> dict[EpisodeKey, EpisodeResult]:
    """Add episodes, each once: the first stays, but a crash gives way to an episode without one.

    Args:
        kept: changed in place.
        records: to add, in the order in which they were written.

    Returns:
        ``kept``.
    """
    for record in records:
        before = kept.get(record.key)
        if before is None or (before.crashed and not record.crashed):
            kept[record.key] = record
    return kept
