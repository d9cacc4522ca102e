"""A results folder: killed at any moment, it loses next to nothing and doubles nothing.

::

    manifest.json               what the results are of, and every run that added to them
    episodes-….parquet          shards of episode records, only ever added to
    episodes-….parquet.corrupt  shards that could not be read, set aside

Read the shards with anything that reads parquet, e.g. ``duckdb -c "select sampler, avg(success::int) from
'results/*.parquet' group by 1"`` after :meth:`ResultStore.compact` (before it, an episode can be in two shards).
"""

from __future__ import annotations

import itertools
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
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


class ConfigurationMismatch(ValueError):
    """A results folder belongs to another configuration."""


class ManifestError(ValueError):
    """A manifest is missing or cannot be read."""


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
        """This manifest extended by another run.

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
        """Write ``manifest.json`` at once or not at all."""
        with atomic_path(folder / MANIFEST) as path:
            path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json``. Raises :class:`ManifestError` if it is missing, damaged, or of a newer format."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format")
            if version != FORMAT:
                raise ManifestError(f"{path} has format {version}, this version reads format {FORMAT}: upgrade")
            return cls(**content)
        except FileNotFoundError:
            raise ManifestError(f"{folder} is not a results folder: it has no {MANIFEST}") from None
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ManifestError(
                f"{path} is damaged ({error}): restore it, or move the folder away and start anew"
            ) from error


def _plain(tree: Any, name: str) -> Any:
    """The tree as JSON gives it back, so that what was written compares equal to what was given."""
    try:
        return json.loads(json.dumps(tree))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be plain data (dict, list, str, numbers, bool, None): {error}") from error


_DERIVED = ("crashed", "chunks", "mean_passes")  # written for those who query the files, computed when read
_COUNTER = itertools.count()


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


class CorruptShardWarning(UserWarning):
    """A shard could not be read; it was set aside and its episodes count as not yet run."""


def write_shard(folder: Path, records: Iterable[EpisodeResult]) -> Path:
    """Write records to a new shard; names sort by time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    rows = [{name: getattr(record, name) for name in schema.names} for record in records]
    target = folder / f"episodes-{time.time_ns():020d}-{os.getpid()}-{next(_COUNTER)}.parquet"
    with atomic_path(target) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, write_page_checksum=True)
    return target


def shard_paths(folder: Path) -> list[Path]:
    """All shards, oldest first."""
    return sorted(folder.glob("episodes-*.parquet"))


def read_shards(folder: Path, set_aside: bool = False) -> list[EpisodeResult]:
    """Every record of every readable shard, oldest first, duplicates included.

    A shard that cannot be read is left out with a :class:`CorruptShardWarning` that names it.

    Args:
        folder: the results folder.
        set_aside: rename such shards to ``….corrupt``; for the writer of the folder, who runs their episodes again.
    """
    for _ in range(10):
        records: list[EpisodeResult] = []
        try:
            for path in shard_paths(folder):
                records += _read_or_warn(path, set_aside)
            return records
        except FileNotFoundError:  # the writer has just merged its shards: look again
            time.sleep(0.1)
    raise RuntimeError(f"the shards in {folder} keep vanishing while they are read; try again when its writer is done")


def _read_or_warn(path: Path, set_aside: bool) -> list[EpisodeResult]:
    import pyarrow as pa

    try:
        return _read(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        consequence = "it was left out"
        if set_aside:
            aside = path.with_name(path.name + ".corrupt")
            path.replace(aside)
            consequence = f"it is now {aside.name}, and its episodes will be run again"
        warnings.warn(f"{path} cannot be read ({error}); {consequence}", CorruptShardWarning, stacklevel=4)
        return []


def _read(path: Path) -> list[EpisodeResult]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    if not table.schema.equals(_schema()):
        raise TypeError("its columns are not those of an episode record")
    rows = table.drop_columns(list(_DERIVED)).to_pylist()
    return [EpisodeResult(**{**row, "passes": tuple(row["passes"])}) for row in rows]


OBSERVATIONS = "observations.npz"


def write_observations(observations: Sequence[Observation], folder: Path) -> None:
    """Write observations, arrays of shape ``(1, n_obs_steps, ...)``, at once or not at all; images compressed."""
    stacked = {name: np.concatenate([each[name] for each in observations]) for name in observations[0]}
    with atomic_path(folder / OBSERVATIONS) as temporary, temporary.open("wb") as file:
        images = any(part.dtype == np.uint8 for part in stacked.values())
        (np.savez_compressed if images else np.savez)(file, allow_pickle=False, **stacked)


def read_observations(folder: Path) -> list[Observation]:
    """What :func:`write_observations` wrote, one by one; none if it wrote nothing."""
    path = folder / OBSERVATIONS
    if not path.exists():
        return []
    with np.load(path) as arrays:
        stacked = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(stacked.values())))
    return [{name: part[row : row + 1] for name, part in stacked.items()} for row in range(count)]


class ObservationKeeper:
    """Writes the observations of a run beside its episodes; a folder that has some from an earlier run keeps those."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._earlier = (folder / OBSERVATIONS).exists()

    def keep(self, observations: Sequence[Observation]) -> None:
        """Take note of what the run has kept so far."""
        if observations and not self._earlier:
            write_observations(observations, self._folder)


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
        self._buffer: list[EpisodeResult] = []
        self._flush_every_s, self._flushed_at = flush_every_s, float("-inf")

    def done(self, count_crashed: bool = True) -> set[EpisodeKey]:
        """Keys of the finished episodes; with ``count_crashed=False`` crashed ones are to be run again."""
        return {key for key, record in self._records.items() if count_crashed or not record.crashed}

    def records(self) -> list[EpisodeResult]:
        """Every finished episode once, sorted by sampler, seed and repeat."""
        return [self._records[key] for key in sorted(self._records)]

    def append(self, record: EpisodeResult) -> None:
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


def read_results(folder: str | Path) -> tuple[list[EpisodeResult], Manifest]:
    """Every finished episode of a folder once, sorted, and its manifest; works while another process writes.

    Raises:
        ManifestError: it is not a results folder, or its manifest is damaged.
    """
    manifest = Manifest.read(Path(folder))
    records = merge({}, read_shards(Path(folder)))
    return [records[key] for key in sorted(records)], manifest


def merge(kept: dict[EpisodeKey, EpisodeResult], records: Iterable[EpisodeResult]) -> dict[EpisodeKey, EpisodeResult]:
    """Add records to ``kept`` and return it. The first of an episode stays, but a crash gives way to a non-crash."""
    for record in records:
        before = kept.get(record.key)
        if before is None or (before.crashed and not record.crashed):
            kept[record.key] = record
    return kept
