"""One line that lives in the terminal."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
from rich.console import Console
from rich.live import Live
from rich.text import Text

from specpolicy.control.account import EpisodeAccount

_COLORS = {"planned": "green", "rest": "cyan", "start": "yellow", "pause": "yellow", "guard": "red"}


class TerminalView:
    """Shows seed, time, what is being sent, its age, what is being computed, and faults; nothing off a terminal.

    Args:
        title: in front of the line, e.g. the executor and the sampler.
        console: standard error by default.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title, self._console = title, console or Console(file=sys.stderr)
        self._live: Live | None = None

    def begin(self, account: EpisodeAccount) -> None:
        """See :class:`View`."""
        if self._console.is_terminal:
            # No background refresh: its thread would take the interpreter from the loop.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def tick(self, account: EpisodeAccount, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        if self._live is not None and len(account.ticks) % max(round(account.rate_hz / 10), 1) == 0:
            self._live.update(self.line(account), refresh=True)

    def end(self, account: EpisodeAccount) -> None:
        """See :class:`View`."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, account: EpisodeAccount) -> Text:
        """The line after the last tick of ``account``."""
        row = account.ticks[-1]
        age = "–" if row.age_s is None else f"{1e3 * row.age_s:.0f} ms"
        text = Text(f"{self._title}  seed {account.seed}  {row.sent_s:5.1f} s  ", no_wrap=True, overflow="ellipsis")
        text.append(f"{row.source:7}", style=_COLORS[row.source])
        text.append(f"  age {age}  queue {row.queue}  computing {row.computing or 'nothing'}")
        if account.faults:
            text.append("  " + ", ".join(f"{name} {count}" for name, count in account.faults.items()), style="red")
        return text
