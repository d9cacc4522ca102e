"""Episode records as parquet files, each complete from the moment it has its name."""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from specpolicy.atomic import atomic_path

from .episodes import EpisodeRecord

_DERIVED = ("crashed", "chunks", "mean_passes")  # written for those who query the files, computed when read
_COUNTER = itertools.count()


@cache
def _schema() -> Any:
    import pyarrow as pa  # not above: it starts a thread, which the processes of environments must not have

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


def write_shard(folder: Path, records: Iterable[EpisodeRecord]) -> Path:
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


def read_shards(folder: Path, set_aside: bool = False) -> list[EpisodeRecord]:
    """Every record of every readable shard, oldest first, duplicates included.

    A shard that cannot be read is left out with a :class:`CorruptShardWarning` that names it.

    Args:
        folder: the results folder.
        set_aside: rename such shards to ``….corrupt``; for the writer of the folder, who runs their episodes again.
    """
    for _ in range(10):
        records: list[EpisodeRecord] = []
        try:
            for path in shard_paths(folder):
                records += _read_or_warn(path, set_aside)
            return records
        except FileNotFoundError:  # the writer has just merged its shards: look again
            time.sleep(0.1)
    raise RuntimeError(f"the shards in {folder} keep vanishing while they are read; try again when its writer is done")


def _read_or_warn(path: Path, set_aside: bool) -> list[EpisodeRecord]:
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


def _read(path: Path) -> list[EpisodeRecord]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    if not table.schema.equals(_schema()):
        raise TypeError("its columns are not those of an episode record")
    rows = table.drop_columns(list(_DERIVED)).to_pylist()
    return [EpisodeRecord(**{**row, "passes": tuple(row["passes"])}) for row in rows]
