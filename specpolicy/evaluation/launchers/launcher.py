"""What a launcher does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from ..comparison import Comparison
from ..units import Batch, Unit


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
