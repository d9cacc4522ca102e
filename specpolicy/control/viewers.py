"""The loop in Rerun's viewer, or in a recording for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from specpolicy.control.trace import EpisodeTrace
from specpolicy.utils.extras import require


class View(Protocol):
    """Watches episodes; what takes long here is taken from the tick."""

    def begin(self, account: EpisodeTrace) -> None:
        """An episode begins."""
        ...

    def tick(self, account: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """A tick has been played; it is the last one of the account."""
        ...

    def end(self, account: EpisodeTrace) -> None:
        """The episode is over."""
        ...


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

    def begin(self, account: EpisodeTrace) -> None:
        """See :class:`View`."""
        if self._console.is_terminal:
            # No background refresh: its thread would take the interpreter from the loop.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def tick(self, account: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        if self._live is not None and len(account.ticks) % max(round(account.rate_hz / 10), 1) == 0:
            self._live.update(self.line(account), refresh=True)

    def end(self, account: EpisodeTrace) -> None:
        """See :class:`View`."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, account: EpisodeTrace) -> Text:
        """The line after the last tick of ``account``."""
        row = account.ticks[-1]
        age = "–" if row.age_s is None else f"{1e3 * row.age_s:.0f} ms"
        text = Text(f"{self._title}  seed {account.seed}  {row.sent_s:5.1f} s  ", no_wrap=True, overflow="ellipsis")
        text.append(f"{row.source:7}", style=_COLORS[row.source])
        text.append(f"  age {age}  queue {row.queue}  computing {row.computing or 'nothing'}")
        if account.faults:
            text.append("  " + ", ".join(f"{name} {count}" for name, count in account.faults.items()), style="red")
        return text


class RerunView:
    """Streams camera, actions, age and queue of what is played, computations and acceptance to Rerun (extra: rerun).

    Each episode is a recording of its own, on the timelines ``tick`` and ``time``.

    Args:
        title: names the recordings.
        save: write ``.rrd`` files beside this path, ``<stem>-seed<seed>-<repeat>.rrd``, instead of opening the viewer.

    Raises:
        ImportError: rerun-sdk is not installed; the message names the extra.
    """

    def __init__(self, title: str, save: str | Path | None = None) -> None:
        self._rerun: Any = require("rerun", "rerun")
        self._title, self._save = title, None if save is None else Path(save)
        self._jobs_shown = 0

    def begin(self, account: EpisodeTrace) -> None:
        """See :class:`View`."""
        rerun = self._rerun
        name = f"{self._title} seed {account.seed}.{account.repeat}"
        rerun.init("specpolicy control", recording_id=name, spawn=self._save is None)
        if self._save is not None:
            self._save.parent.mkdir(parents=True, exist_ok=True)
            rerun.save(str(self._save.with_name(f"{self._save.stem}-seed{account.seed}-{account.repeat}.rrd")))
        self._jobs_shown = 0

    def tick(self, account: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        rerun, row = self._rerun, account.ticks[-1]
        rerun.set_time("tick", sequence=row.tick)
        rerun.set_time("time", duration=row.sent_s)
        for index, value in enumerate(row.action):
            rerun.log(f"action/{index}", rerun.Scalars(value))
        rerun.log("loop/queue", rerun.Scalars(row.queue))
        if row.age_s is not None:
            rerun.log("loop/age_ms", rerun.Scalars(1e3 * row.age_s))
        if row.fault is not None:
            rerun.log("loop/guards", rerun.TextLog(f"{row.fault}: {row.response}", level="WARN"))
        self._show_jobs(account)
        if env.render_mode == "rgb_array":
            rerun.log("camera", rerun.Image(np.asarray(env.render(), dtype=np.uint8)))

    def end(self, account: EpisodeTrace) -> None:
        """See :class:`View`."""
        outcome = "success" if account.success else "failure"
        if account.stopped is not None:
            outcome += f", stopped: {account.stopped}"
        self._rerun.log("loop/outcome", self._rerun.TextLog(outcome))

    def _show_jobs(self, account: EpisodeTrace) -> None:
        rerun = self._rerun
        for job in account.jobs[self._jobs_shown :]:
            if job.ended_s is None or job.ended_s > account.ticks[-1].sent_s:
                return  # under way
            self._jobs_shown += 1
            rerun.log(f"inference/{job.kind}/ms", rerun.Scalars(1e3 * (job.ended_s - job.begun_s)))
            if job.passes is not None:
                rerun.log(f"inference/{job.kind}/passes", rerun.Scalars(job.passes))
            if job.acceptance is not None:
                rerun.log(f"inference/{job.kind}/acceptance", rerun.Scalars(job.acceptance))
