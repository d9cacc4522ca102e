"""Progress bars that stay quiet where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """One line of progress: ``advance`` it, or ``describe`` what is going on."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: float = 1) -> None:
        """Note that ``steps`` more are done."""
        self._progress.advance(self._task, steps)  # type: ignore[arg-type]

    def describe(self, text: str) -> None:
        """Change the text in front of the bar."""
        self._progress.update(self._task, description=text)  # type: ignore[arg-type]


@contextmanager
def progress_bar(description: str, total: int, completed: int = 0) -> Iterator[Bar]:
    """Show a bar on standard error while the block runs; nothing if that is not a terminal.

    Args:
        description: the text in front of the bar.
        total: number of steps.
        completed: of them, at the start.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty()) as progress:
        yield Bar(progress, progress.add_task(description, total=total, completed=completed))
