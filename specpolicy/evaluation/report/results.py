"""What a report is of: results folders, read with everything that may be wrong with them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..episodes import EpisodeRecord
from ..latency import LatencyRun
from ..looks import Look, looks_of
from ..manifest import MANIFEST, Manifest
from ..shards import shard_paths
from ..store import read_results
from ..summary import SummaryRow, summarize
from .law import Law, law_of

LATENCY = "latency.json"
REFERENCE = "ddpm"


class ReportError(ValueError):
    """There is nothing to report on."""


@dataclass(frozen=True)
class TaskResults:
    """One results folder.

    Attributes:
        folder: where it is.
        manifest: what it holds.
        records: its finished episodes.
        latency: its timed calls, if there are any.
        reference: the sampler that others are compared with; None if there is none to compare with.
        rows: see :func:`summarize`.
        problems: what could not be read, one sentence each.
        cast: samplers of all tasks on the page, which share their colours.
        namesake: whether another folder on the page is of the same task.
    """

    folder: Path
    manifest: Manifest
    records: Sequence[EpisodeRecord]
    latency: LatencyRun | None
    reference: str | None
    rows: Sequence[SummaryRow]
    problems: Sequence[str] = ()
    cast: Sequence[str] = ()
    namesake: bool = False

    @property
    def heading(self) -> str:
        """The task, and which folder of that task it is if there are several."""
        folder = self.folder.resolve().name
        return f"{self.task} ({folder})" if self.namesake and folder != self.task else self.task

    @property
    def task(self) -> str:
        """Its name; that of the folder where the manifest does not say."""
        return str(self.manifest.configuration.get("task", self.folder.resolve().name))

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Colour and name of each sampler."""
        return looks_of(self.rows, self.cast)

    @cached_property
    def laws(self) -> dict[str, Law | None]:
        """What each exact sampler samples, as far as its recipe tells."""
        recipes = {name: entry.get("recipe") for name, entry in self.manifest.samplers.items()}
        return {row.sampler: law_of(recipes.get(row.sampler)) if row.exact else None for row in self.rows}

    def row(self, sampler: str | None) -> SummaryRow | None:
        """The row of a sampler, None if it did not take part."""
        return next((row for row in self.rows if row.sampler == sampler), None)

    def marked(self, sampler: str) -> str:
        """The sampler's name, with the word if it is approximate."""
        row = self.row(sampler)
        exact = row.exact if row else self.manifest.samplers.get(sampler, {}).get("exact")
        return f"{sampler} (approximate)" if exact is False else sampler

    def same_law(self, row: SummaryRow) -> bool:
        """Whether this sampler is known to have the reference's law."""
        law = self.laws.get(row.sampler)
        return row.sampler == self.reference or (law is not None and law == self.laws.get(self.reference or ""))


def read_folder(folder: str | Path, reference: str | None = None) -> tuple[list[TaskResults], dict[Path, str]]:
    """Read a results folder, or a folder of them.

    Args:
        folder: as written by ``specpolicy rollout``, or with one such folder for each task.
        reference: the sampler to compare with; by default ``ddpm``, without it the exact sampler of the most passes.

    Returns:
        The results of each task, by name; and the folders that could not be read, with the reason.

    Raises:
        ReportError: there is no such folder, or no results in it that can be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ReportError(f"there is no folder {root}; give the out= folder of specpolicy rollout or evaluate")
    folders = [root] if _holds_results(root) else sorted(path for path in root.iterdir() if _holds_results(path))
    if not folders:
        raise ReportError(
            f"{root} holds no results: no {MANIFEST} in it or in a folder below it; "
            "give the out= folder of specpolicy rollout or evaluate"
        )
    read: list[TaskResults] = []
    failed: dict[Path, str] = {}
    for path in folders:
        try:
            read.append(read_task(path, reference))
        except ValueError as error:
            failed[path] = str(error)
    if not read:
        raise ReportError("; ".join(failed.values()))
    read.sort(key=lambda results: results.task)
    cast = list(dict.fromkeys(row.sampler for results in read for row in results.rows))
    tasks = Counter(results.task for results in read)
    return [replace(results, cast=cast, namesake=tasks[results.task] > 1) for results in read], failed


def read_task(folder: Path, reference: str | None = None) -> TaskResults:
    """Read one results folder; see :func:`read_folder`.

    Raises:
        ManifestError: its manifest is missing or damaged.
        ReportError: it holds neither episodes nor timed calls, or has no sampler called ``reference``.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records, manifest = read_results(folder)
    problems = [str(warning.message) for warning in caught]
    latency = None
    try:
        latency = LatencyRun.read(folder / LATENCY) if (folder / LATENCY).exists() else None
    except (ValueError, OSError) as error:
        problems.append(str(error))
    if not records and latency is None:
        reason = f" ({'; '.join(problems)})" if problems else ""
        raise ReportError(f"{folder} holds no finished episodes and no measured latency{reason}: run them first")
    exact = {name: bool(entry["exact"]) for name, entry in manifest.samplers.items() if "exact" in entry}
    chosen = _reference(summarize(records, latency, exact), reference, folder)
    rows = summarize(records, latency, exact, chosen or REFERENCE)
    return TaskResults(folder, manifest, records, latency, chosen, rows, problems)


def _holds_results(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).exists() or bool(shard_paths(folder)))


def _reference(rows: Sequence[SummaryRow], wanted: str | None, folder: Path) -> str | None:
    names = [row.sampler for row in rows]
    if wanted is not None:
        if wanted not in names:
            raise ReportError(f"{folder} has no sampler {wanted!r} to compare with; it has {', '.join(names)}")
        return wanted
    if REFERENCE in names:
        return REFERENCE
    exact = [row for row in rows if row.exact and row.passes is not None]
    return max(exact, key=lambda row: row.passes or 0.0).sampler if exact else None
