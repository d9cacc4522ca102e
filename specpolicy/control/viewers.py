"""What watches a control loop: a line in the terminal, Rerun, a recorder of frames."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from specpolicy.control.trace import EpisodeTrace
from specpolicy.utils.extras import require


class View(Protocol):
    """Watches episodes; its time is taken from the tick."""

    def begin(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """An episode begins."""
        ...

    def tick(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """A tick has been played; it is the last one of the trace."""
        ...

    def end(self, trace: EpisodeTrace) -> None:
        """The episode is over."""
        ...


class FrameRecorder:
    """Keeps an image after the reset and after every tick; the environment needs ``render_mode="rgb_array"``.

    Attributes:
        frames: of the latest episode, each ``(height, width, 3)``, uint8.
    """

    def __init__(self) -> None:
        self.frames: list[NDArray[np.uint8]] = []

    def begin(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        self.frames = []
        self._record(env)

    def tick(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        self._record(env)

    def end(self, trace: EpisodeTrace) -> None:
        """See :class:`View`."""

    def _record(self, env: gymnasium.Env[Any, Any]) -> None:
        frame: Any = env.render()
        if not isinstance(frame, np.ndarray):
            raise RuntimeError(
                "the environment renders no images; make it with render_mode='rgb_array', and check that this machine "
                "can render"
            )
        self.frames.append(np.array(frame, dtype=np.uint8))


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

    def begin(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        if self._console.is_terminal:
            # No background refresh: its thread would take the interpreter from the loop.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def tick(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        if self._live is not None and len(trace.ticks) % max(round(trace.rate_hz / 10), 1) == 0:
            self._live.update(self.line(trace), refresh=True)

    def end(self, trace: EpisodeTrace) -> None:
        """See :class:`View`."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, trace: EpisodeTrace) -> Text:
        """The line after the last tick of ``trace``."""
        row = trace.ticks[-1]
        age = "–" if row.age_s is None else f"{1e3 * row.age_s:.0f} ms"
        text = Text(f"{self._title}  seed {trace.seed}  {row.sent_s:5.1f} s  ", no_wrap=True, overflow="ellipsis")
        text.append(f"{row.source:7}", style=_COLORS[row.source])
        text.append(f"  age {age}  queue {row.queue}  computing {row.computing or 'nothing'}")
        if trace.faults:
            text.append("  " + ", ".join(f"{name} {count}" for name, count in trace.faults.items()), style="red")
        return text


class RerunView:
    """Streams camera, actions, age and queue of what is played, computations and acceptance to Rerun (extra: rerun).

    Each episode is a recording of its own, on the timelines ``tick`` and ``time``.

    Args:
        title: names the recordings.
        save: write ``.rrd`` files beside this path, ``<name>-seed<seed>-<repeat>.rrd``, instead of starting the viewer.

    Raises:
        ImportError: rerun-sdk is not installed; the message names the extra.
    """

    def __init__(self, title: str, save: str | Path | None = None) -> None:
        self._rerun: Any = require("rerun", "rerun")
        self._title, self._save = title, None if save is None else Path(save)
        self._shown = 0

    def begin(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        rerun = self._rerun
        name = f"{self._title} seed {trace.seed}.{trace.repeat}"
        rerun.init("specpolicy control", recording_id=name, spawn=self._save is None)
        if self._save is not None:
            self._save.parent.mkdir(parents=True, exist_ok=True)
            rerun.save(str(self._save.with_name(f"{self._save.stem}-seed{trace.seed}-{trace.repeat}.rrd")))
        self._shown = 0

    def tick(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`View`."""
        rerun, row = self._rerun, trace.ticks[-1]
        rerun.set_time("tick", sequence=row.tick)
        rerun.set_time("time", duration=row.sent_s)
        for index, value in enumerate(row.action):
            rerun.log(f"action/{index}", rerun.Scalars(value))
        rerun.log("loop/queue", rerun.Scalars(row.queue))
        if row.age_s is not None:
            rerun.log("loop/age_ms", rerun.Scalars(1e3 * row.age_s))
        if row.fault is not None:
            rerun.log("loop/guards", rerun.TextLog(f"{row.fault}: {row.response}", level="WARN"))
        self._show_inferences(trace)
        if env.render_mode == "rgb_array":
            rerun.log("camera", rerun.Image(np.asarray(env.render(), dtype=np.uint8)))

    def end(self, trace: EpisodeTrace) -> None:
        """See :class:`View`."""
        outcome = "success" if trace.success else "failure"
        if trace.stopped is not None:
            outcome += f", stopped: {trace.stopped}"
        self._rerun.log("loop/outcome", self._rerun.TextLog(outcome))

    def _show_inferences(self, trace: EpisodeTrace) -> None:
        rerun = self._rerun
        for inference in trace.inferences[self._shown :]:
            if inference.ended_s is None or inference.ended_s > trace.ticks[-1].sent_s:
                return  # under way
            self._shown += 1
            rerun.log(f"inference/{inference.kind}/ms", rerun.Scalars(1e3 * (inference.ended_s - inference.begun_s)))
            if inference.passes is not None:
                rerun.log(f"inference/{inference.kind}/passes", rerun.Scalars(inference.passes))
            if inference.acceptance is not None:
                rerun.log(f"inference/{inference.kind}/acceptance", rerun.Scalars(inference.acceptance))
