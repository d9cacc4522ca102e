"""Traces as parquet: a file for each episode, a row for each tick."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.control.inference import InferenceKind
from specpolicy.utils.errors import one_line
from specpolicy.utils.extras import require
from specpolicy.utils.files import DAMAGED, atomic_path


@dataclass
class InferenceRecord:
    """One inference, filled in as it proceeds. Times are seconds since the start of the episode, on the loop's clock.

    Attributes:
        number: counted from 0 in each episode.
        kind: what was computed.
        tick: of the observation that it is about; of a predicted one, the tick that it was predicted for.
        observed_s: when that observation was taken.
        begun_s: when the inference began.
        ended_s: when it ended; None if it had not.
        passes, evaluations, acceptance, error: as in :class:`specpolicy.control.InferenceResult`.
        handover: tick from which on its chunk was played; None if it never was.
        prefix: actions under way that a delay-conditioned policy was told; None if it was not asked as one.
        predicted: ticks by which the observation was predicted ahead; None where executors do not predict, and before
            there is a chunk.
        actions: all that the policy predicted, shape ``(n, action_dim)``, the first for ``tick``; for those who watch,
            it is not written. None after a draft and after a failure.
    """

    number: int
    kind: InferenceKind
    tick: int
    observed_s: float
    begun_s: float
    ended_s: float | None = None
    passes: int | None = None
    evaluations: int | None = None
    acceptance: float | None = None
    error: str | None = None
    handover: int | None = None
    prefix: int | None = None
    predicted: int | None = None
    actions: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)

    @property
    def expected_delay(self) -> bool:
        """Whether the chunk was made for a handover after the observation: by prediction, or told what plays."""
        return self.prefix is not None or self.predicted is not None

    @property
    def outran(self) -> bool:
        """Whether the chunk was there later than it was made for."""
        return self.expected_delay and self.handover is not None and self.handover - self.tick > (self.prefix or 0)


@dataclass(frozen=True)
class StepRecord:
    """One tick: what was sent, from which chunk, and what the guards said. Times as in :class:`InferenceRecord`.

    Attributes:
        tick: number of the tick on the clock's grid; a number that is missing was skipped, being too late.
        due_s: when the action was due.
        sent_s: when it was sent.
        source: ``"planned"``, ``"rest"`` of a chunk, ``"start"`` (no chunk yet), ``"pause"`` (the executor holds), or
            ``"guard"``.
        inference: number of the inference that the action's newest chunk came from; None if no chunk had a part in it.
        observed_s, begun_s, ended_s, passes: of that inference.
        age_s: ``sent_s − observed_s``.
        queue: actions that were left to play, this one included.
        computing: kind of the inference under way after this tick's decisions; None if there was none.
        fault, response: what a guard objected to, and its response; None if nothing was wrong.
        action: what was sent, environment units.
        reward, success: of the environment.
    """

    tick: int
    due_s: float
    sent_s: float
    source: str
    inference: int | None
    observed_s: float | None
    begun_s: float | None
    ended_s: float | None
    passes: int | None
    age_s: float | None
    queue: int
    computing: str | None
    fault: str | None
    response: str | None
    action: tuple[float, ...]
    reward: float
    success: bool


@dataclass
class EpisodeTrace:
    """Everything about one episode of a control loop.

    Attributes:
        seed, repeat: which episode.
        rate_hz: ticks a second.
        n_action_steps: actions of each chunk that the executor plays.
        ticks, inferences: in order.
        stopped: the fault for which a guard ended the episode; None if none did.
        reason: why that or the latest other fault of a chunk occurred, in words; None if there was none.
        faults: how often each fault occurred, those of whole chunks included.
        observation: the latest one, ``{name: (…)}``, for those who watch; it is not written.
        tracked: commands of the policy's actions that went through limits of motion; 0 without limits.
        limited: how many of these the limits changed.
        delta_dims: entries of an action that are deltas; the others are absolute.
    """

    seed: int
    repeat: int
    rate_hz: float
    n_action_steps: int
    ticks: list[StepRecord] = field(default_factory=list)
    inferences: list[InferenceRecord] = field(default_factory=list)
    stopped: str | None = None
    reason: str | None = None
    faults: Counter[str] = field(default_factory=Counter)
    observation: Mapping[str, NDArray[Any]] = field(default_factory=dict, compare=False, repr=False)
    tracked: int = 0
    limited: int = 0
    delta_dims: tuple[int, ...] = ()

    @property
    def success(self) -> bool:
        """Whether ``info["success"]`` was true at some tick."""
        return any(row.success for row in self.ticks)

    @property
    def return_(self) -> float:
        """Sum of rewards."""
        return float(sum(row.reward for row in self.ticks))

    @property
    def skipped(self) -> int:
        """Ticks of the clock at which nothing was sent, because the one before took too long."""
        return self.ticks[-1].tick + 1 - len(self.ticks) if self.ticks else 0


FORMAT = 2
_KEY = b"specpolicy.control"


class TraceError(ValueError):
    """A file is not a readable trace of an episode."""


def write_trace(trace: EpisodeTrace, path: Path, labels: Mapping[str, str] | None = None) -> None:
    """Write a trace, whole or not at all.

    The rows are :class:`StepRecord` with ``seed``, ``repeat`` and the ``labels`` in front. Inferences, whose chunks
    need not have been played, and the rest are JSON in the file's metadata under ``specpolicy.control``.

    Args:
        trace: of an episode.
        path: the parquet file; its folder is made.
        labels: further columns, the same in every row.

    Raises:
        ImportError: pyarrow is missing; the message names the extra.
    """
    pa, pq = require("pyarrow", "eval"), require("pyarrow.parquet", "eval")
    rest = {
        name: getattr(trace, name)
        for name in (
            "seed",
            "repeat",
            "rate_hz",
            "n_action_steps",
            "stopped",
            "reason",
            "faults",
            "tracked",
            "limited",
            "delta_dims",
        )
    }
    inferences = [asdict(replace(inference, actions=None)) for inference in trace.inferences]
    for each in inferences:
        del each["actions"]
    rest |= {"format": FORMAT, "inferences": inferences}
    front = {**(labels or {}), "seed": trace.seed, "repeat": trace.repeat}
    rows = [front | asdict(row) for row in trace.ticks]
    schema = pa.schema(
        [(name, pa.dictionary(pa.int32(), pa.string())) for name in labels or {}]
        + [("seed", pa.int64()), ("repeat", pa.int64()), *_columns(pa)]
    )
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({_KEY: json.dumps(rest).encode()}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def read_trace(path: Path) -> EpisodeTrace:
    """Read what :func:`write_trace` wrote.

    Args:
        path: the parquet file.

    Returns:
        The trace.

    Raises:
        TraceError: the file is something else, or damaged.
    """
    pa, pq = require("pyarrow", "eval"), require("pyarrow.parquet", "eval")
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        rest = json.loads(table.schema.metadata[_KEY])
        if rest.pop("format") != FORMAT:
            raise KeyError("another format")
        inferences = [
            InferenceRecord(**{**record, "kind": InferenceKind(record["kind"])}) for record in rest.pop("inferences")
        ]
        rows = table.select([field.name for field in fields(StepRecord)]).to_pylist()
        ticks = [StepRecord(**{**row, "action": tuple(row["action"])}) for row in rows]
        rest |= {"faults": Counter(rest["faults"]), "delta_dims": tuple(rest.get("delta_dims", ()))}
        return EpisodeTrace(**rest, ticks=ticks, inferences=inferences)
    except (pa.ArrowException, *DAMAGED) as error:
        raise TraceError(
            f"{path} is not a readable trace of an episode ({one_line(error, 300)}): run the episode again"
        ) from error


def _columns(pa: Any) -> list[tuple[str, Any]]:
    kinds = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
    return [
        (field.name, pa.list_(pa.float64()) if field.name == "action" else kinds[str(field.type).split(" | ")[0]])
        for field in fields(StepRecord)
    ]
