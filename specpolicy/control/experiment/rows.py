"""From episodes and their ticks to one row a cell."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specpolicy.control.account import EpisodeAccount
from specpolicy.control.metrics import ControlMetrics, measure
from specpolicy.control.recording import AccountError, read_account
from specpolicy.evaluation.episodes import EpisodeRecord
from specpolicy.evaluation.summary import SummaryRow, summarize
from specpolicy.progress import Bar, progress_bar

from .cells import Cell


@dataclass(frozen=True)
class CellRow:
    """What is known of one controller.

    Attributes:
        cell: which.
        exact: whether its sampler has the law that the sampler names.
        summary: success with Wilson's interval, passes of the chunks played, and the paired comparison with the cell of
            the same sampler for which the world waits, where there is one.
        metrics: of its loop.
        latency_ms: median latency of a whole inference: as charged, else as it was measured; None if nothing is known.
    """

    cell: Cell
    exact: bool
    summary: SummaryRow
    metrics: ControlMetrics
    latency_ms: float | None


def make_rows(
    cells: Sequence[Cell],
    records: Sequence[EpisodeRecord],
    exact: Mapping[str, bool],
    paths: Mapping[str, Sequence[Path]],
) -> list[CellRow]:
    """A row for each cell that has episodes, in the order of ``cells``.

    Args:
        cells: of the experiment.
        records: its episodes, each once.
        exact: by sampler.
        paths: files of ticks by cell.
    """
    with progress_bar("reading ticks", sum(map(len, paths.values()))) as bar:
        return _make_rows(cells, records, exact, paths, bar)


def _make_rows(
    cells: Sequence[Cell],
    records: Sequence[EpisodeRecord],
    exact: Mapping[str, bool],
    paths: Mapping[str, Sequence[Path]],
    bar: Bar,
) -> list[CellRow]:
    rows = []
    for sampler in dict.fromkeys(cell.sampler for cell in cells):
        family = [cell for cell in cells if cell.sampler == sampler]
        waits = [cell.name for cell in family if cell.executor.rules.world_waits]
        names = {cell.name for cell in family}
        mine = [record for record in records if record.sampler in names]
        laws = {cell.name: exact[sampler] for cell in family}
        summaries = {row.sampler: row for row in summarize(mine, exact=laws, reference=waits[0] if waits else "")}
        for cell in family:
            if cell.name in summaries:
                metrics = measure(_accounts(paths.get(cell.name, ()), bar))
                latency = _latency_ms(cell, metrics)
                rows.append(CellRow(cell, exact[sampler], summaries[cell.name], metrics, latency))
    return rows


def _latency_ms(cell: Cell, metrics: ControlMetrics) -> float | None:
    typical = cell.charge.latency.typical_s
    if typical is not None:
        return 1e3 * typical
    return None if metrics.inference_ms is None else metrics.inference_ms.p50


def _accounts(paths: Sequence[Path], bar: Bar) -> Iterator[EpisodeAccount]:
    for path in paths:
        bar.advance()
        try:
            yield read_account(path)
        except AccountError as error:
            warnings.warn(f"{error}; the loop's numbers do without it", stacklevel=2)
