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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from specpolicy.policies.protocols import Observation
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult
from specpolicy.utils.files import FolderLock, atomic_path, differences

FORMAT = 1
MANIFEST = "manifest.json"
OBSERVATIONS = "observations.npz"
_SHARD_EPISODES = 256  # in a shard at most, which is written again with every episode
_DERIVED = ("crashed", "chunks", "mean_passes")  # written for those who query the files, computed when read
_DIGEST = b"episodes_sha256"
_COUNTER = itertools.count()


class ConfigurationMismatch(ValueError):
    """A results folder belongs to another configuration."""


class ManifestError(ValueError):
    """A manifest is missing or cannot be read."""


class ResultsError(RuntimeError):
    """A file of a results folder cannot be written or read."""


class CorruptShardWarning(UserWarning):
    """A shard could not be read; it was set aside and its episodes count as not yet run."""


@dataclass
class Manifest:
    """The identity of a results folder.

    Attributes:
        configuration: everything that changes what an episode means: task, checkpoint digest, environment, horizons.
            Not the seeds, nor how many environments run side by side: those may change from run to run.
        samplers: the recipe of each sampler by name; a run may bring new ones.
        provenance: where and with what each run was made, oldest first; for the reader, not compared.
    """

    configuration: dict[str, Any]
    samplers: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.configuration = _plain(self.configuration, "configuration")
        self.samplers = _plain(self.samplers, "samplers")
        self.provenance = _plain(self.provenance, "provenance")

    def joined(self, other: Manifest, folder: Path) -> Manifest:
        """Extend this manifest by another run.

        Args:
            other: of the run.
            folder: whose manifest this is, for the error message.

        Raises:
            ConfigurationMismatch: the configurations differ, or a sampler of the same name has another recipe.
        """
        shared = self.samplers.keys() & other.samplers.keys()
        lines = differences(
            {**self.configuration, "samplers": {name: self.samplers[name] for name in shared}},
            {**other.configuration, "samplers": {name: other.samplers[name] for name in shared}},
        )
        if lines:
            raise ConfigurationMismatch(
                f"{folder} holds results of another configuration:\n"
                + "\n".join(lines)
                + "\nWrite to a new folder, or set these fields as they were to continue this one."
            )
        return Manifest(self.configuration, {**self.samplers, **other.samplers}, self.provenance + other.provenance)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` completely or not at all.

        Args:
            folder: the results folder.

        Raises:
            ResultsError: it cannot be written.
        """
        with _written(folder / MANIFEST) as path:
            path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json`` as plain data; nothing that it names is resolved.

        Args:
            folder: the results folder.

        Raises:
            ManifestError: it is missing, damaged, or of a newer format.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ManifestError(f"{folder} is not a results folder: it has no {MANIFEST}") from None
        except OSError as error:
            raise ManifestError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise _damaged(path, " ".join(str(error).split())) from error
        if not isinstance(content, dict) or "format" not in content:
            raise _damaged(path, "expected an object with a format")
        version = content.pop("format")
        if version != FORMAT:
            raise ManifestError(
                f"{path} has format {json.dumps(version)[:40]}, this version reads format {FORMAT}: upgrade specpolicy"
            )
        if unknown := content.keys() - cls.__dataclass_fields__.keys():
            raise _damaged(path, f"unknown entry {min(unknown)[:40]!r}")
        if not isinstance(content.get("configuration"), dict):
            raise _damaged(path, "configuration must be an object")
        samplers, provenance = content.get("samplers", {}), content.get("provenance", [])
        if not isinstance(samplers, dict) or not all(isinstance(each, dict) for each in samplers.values()):
            raise _damaged(path, "samplers must be an object of objects")
        if not all(isinstance(each.get("exact", False), bool) for each in samplers.values()):
            raise _damaged(path, "a sampler's exact must be true or false")
        if not isinstance(provenance, list) or not all(isinstance(each, dict) for each in provenance):
            raise _damaged(path, "provenance must be a list of objects")
        return cls(**content)


def _damaged(path: Path, reason: str) -> ManifestError:
    return ManifestError(f"{path} is damaged ({reason}): restore it, or move the folder away and start anew")


def _plain(tree: Any, name: str) -> Any:
    """Return the tree as JSON gives it back, so that what was written compares equal to what was given."""
    try:
        return json.loads(json.dumps(tree))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be plain data (dict, list, str, numbers, bool, None): {error}") from error


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces ``path`` when the block succeeds; say in one line why it cannot be written.

    Raises:
        ResultsError: the disk is full, read-only, gone, ...
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise ResultsError(
            f"{path} could not be written ({error.strerror or error}); what was written before is unharmed: make room "
            "or give another folder with out=, then run the same command again"
        ) from error


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
    """Choose the path of a new shard; names sort by time."""
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
    with _written(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
    return path


def _digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def shard_paths(folder: Path) -> list[Path]:
    """List all shards, oldest first."""
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
    with _written(folder / OBSERVATIONS) as temporary, temporary.open("wb") as file:
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
        with np.load(path, allow_pickle=False) as arrays:
            stacked = {name: np.asarray(arrays[name]) for name in arrays.files}
        counts = {len(part) for part in stacked.values()}
        if len(counts) != 1 or any(part.dtype.kind not in "fiub" for part in stacked.values()):
            raise ValueError("expected arrays of numbers with as many rows each")
    except Exception as error:  # zip, zlib and numpy fail in many ways on a damaged archive
        reason = " ".join(f"{error}".split())
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
        """Write what the run has recorded so far."""
        if observations and not self._earlier:
            write_observations(observations, self._folder)


class ResultStore:
    """Open a results folder to add to it, making it if need be. Use as a context manager.

    Args:
        folder: where the results are.
        configuration: what they are of; see :class:`Manifest`.
        samplers: recipes of this run's samplers by name; include ``"exact"`` so that the folder alone makes a table.
        provenance: where and with what this run is made.

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
    ) -> None:
        self.folder = Path(folder)
        run = Manifest(
            dict(configuration),
            {name: dict(recipe) for name, recipe in (samplers or {}).items()},
            [dict(provenance)] if provenance else [],
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
