"""Units of work one after another, in this process and its environments' own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from specpolicy.evaluation.comparison import Comparison
from specpolicy.rollout.episodes import Batch, Unit
from specpolicy.utils.provenance import machine


class LauncherError(RuntimeError):
    """Workers cannot be had, or one of them cannot do its work."""


class Launcher(Protocol):
    """Runs units of work. Their episodes do not depend on where, in what order, or how often they are tried."""

    def run(self, comparisons: Mapping[str, Comparison], units: Sequence[Unit]) -> Iterator[Batch]:
        """Run every unit and hand out what has ended; closing the iterator ends all work.

        Args:
            comparisons: by task.
            units: what to run.

        Raises:
            EvaluationAborted: nothing but crashes came. Batches handed out before remain valid.
            LauncherError: see there.
        """
        ...


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalLauncher:
    """Runs units here, task by task. Episodes are handed out one by one as they end."""

    def run(self, comparisons: Mapping[str, Comparison], units: Sequence[Unit]) -> Iterator[Batch]:
        """See :class:`Launcher`."""
        if any(comparison.threads is None for comparison in comparisons.values()):
            _mind_the_load()
        for task, of_task in groupby(units, key=lambda unit: unit.task):
            with comparisons[task].open() as runner:
                yield from runner.run(of_task)


def _mind_the_load() -> None:
    here = machine()
    threads, load, cores = here["torch_threads"], here["load_1min"], here["cores"]
    if threads > 1 and load is not None and load > cores / 2:
        _log.warning(
            "this machine is busy (load %.1f on %d cores), torch's %d threads will keep waiting for each other: "
            "threads=1 may be many times faster",
            load, cores, threads,
        )  # fmt: skip
