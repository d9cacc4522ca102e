"""Accounts as parquet: a file for each episode, a row for each tick."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from specpolicy._extras import require
from specpolicy.atomic import atomic_path

from .account import EpisodeAccount, Job, TickRow
from .questions import Kind

FORMAT = 1
_KEY = b"specpolicy.control"


class AccountError(ValueError):
    """A file is not a readable account of an episode."""


def write_account(account: EpisodeAccount, path: Path, labels: Mapping[str, str] | None = None) -> None:
    """Write an account, at once or not at all.

    The rows are :class:`TickRow` with ``seed``, ``repeat`` and the ``labels`` in front. Computations, whose chunks
    need not have been played, and the rest are JSON in the file's metadata under ``specpolicy.control``.

    Raises:
        ImportError: pyarrow is missing; the message names the extra.
    """
    pa, pq = require("pyarrow", "eval"), require("pyarrow.parquet", "eval")
    rest = {name: getattr(account, name) for name in ("seed", "repeat", "rate_hz", "play", "stopped", "faults")}
    rest |= {"format": FORMAT, "jobs": [asdict(job) for job in account.jobs]}
    front = {**(labels or {}), "seed": account.seed, "repeat": account.repeat}
    rows = [front | asdict(row) for row in account.ticks]
    schema = pa.schema(
        [(name, pa.dictionary(pa.int32(), pa.string())) for name in labels or {}]
        + [("seed", pa.int64()), ("repeat", pa.int64()), *_columns(pa)]
    )
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({_KEY: json.dumps(rest).encode()}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def read_account(path: Path) -> EpisodeAccount:
    """Read what :func:`write_account` wrote. Raises :class:`AccountError` if it is something else, or damaged."""
    pa, pq = require("pyarrow", "eval"), require("pyarrow.parquet", "eval")
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        rest = json.loads(table.schema.metadata[_KEY])
        if rest.pop("format") != FORMAT:
            raise KeyError("another format")
        jobs = [Job(**{**job, "kind": Kind(job["kind"])}) for job in rest.pop("jobs")]
        rows = table.select([field.name for field in fields(TickRow)]).to_pylist()
        ticks = [TickRow(**{**row, "action": tuple(row["action"])}) for row in rows]
        return EpisodeAccount(**{**rest, "faults": Counter(rest["faults"])}, ticks=ticks, jobs=jobs)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise AccountError(
            f"{path} is not a readable account of an episode ({error}): run the episode again"
        ) from error


def _columns(pa: Any) -> list[tuple[str, Any]]:
    kinds = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
    return [
        (field.name, pa.list_(pa.float64()) if field.name == "action" else kinds[str(field.type).split(" | ")[0]])
        for field in fields(TickRow)
    ]
