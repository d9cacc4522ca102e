"""A watchdog in a process of its own: it sends the safe action when the loop dies, hangs, fails or falls behind."""

from __future__ import annotations

import logging
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from types import TracebackType

import cloudpickle
import numpy as np

from specpolicy.control import watchdog_process as process
from specpolicy.control.action_space import Action
from specpolicy.utils.checks import check_number
from specpolicy.utils.errors import one_line

Sender = Callable[[tuple[float, ...]], object]
"""Sends an action, its entries in environment units, to the robot; in the watchdog's process, to which it is pickled.

Define it in a module that imports little, for that process imports it. If it has a method ``open()``, this is called
there at the start, to connect."""

_log = logging.getLogger(__name__)


class WatchdogTripped(RuntimeError):
    """The watchdog has sent the safe action; the loop must not go on as if nothing had happened."""


class WatchdogError(RuntimeError):
    """The watchdog could not be started."""


@dataclass(frozen=True)
class WatchdogConfig:
    """When the watchdog sends, and what.

    Attributes:
        deadline_s: after so much time without a heartbeat the loop counts as hanging. A heartbeat comes with every
            command; two to three of their periods tolerate a late one.
        action: to send; None: standstill as of the last heartbeat, deltas zero and absolute entries as commanded last.
        resend_s: send again for so long; for robots that need a command in every cycle.
        resend_hz: how often then.
        priority: of ``SCHED_FIFO`` for the watchdog's process; None leaves it in the ordinary scheduling class.
        cores: that it is pinned to, with a priority; None: any.

    Raises:
        ValueError: a number is out of range or not finite.
    """

    deadline_s: float = 0.1
    action: Sequence[float] | None = None
    resend_s: float = 0.0
    resend_hz: float = 50.0
    priority: int | None = None
    cores: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_number("watchdog: deadline_s", self.deadline_s, above=0)
        check_number("watchdog: resend_s", self.resend_s, least=0)
        check_number("watchdog: resend_hz", self.resend_hz, above=0)
        for value in self.action or ():
            check_number("watchdog: action", value)
        if self.priority is not None and not 1 <= self.priority <= 99:
            raise ValueError(f"watchdog: priority={self.priority}; expected 1 to 99, or null")


class Watchdog:
    """Watches this process's loop from another one. Use it as a context manager around the loop.

    The first :meth:`beat` arms it. The end of the ``with`` block disarms it, unless an exception ends it: then, as
    after the death of this process, the safe action is sent at once.

    Args:
        sender: sends an action; see :data:`Sender`.
        dim: entries of an action.
        config: when and what.
        start_s: how long its process may take to start.

    Raises:
        WatchdogError: the sender cannot be pickled or opened, or the process does not start.
        ValueError: the configured action has another number of entries.

    Example:
        >>> with Watchdog(send, dim=7) as watchdog:  # doctest: +SKIP
        ...     ControlLoop(env, runner, executor, RealTimeClock(20), action_spec=spec, watchdog=watchdog).run(seed=0)
    """

    def __init__(self, sender: Sender, dim: int, config: WatchdogConfig | None = None, start_s: float = 30.0) -> None:
        self.config = config = config or WatchdogConfig()
        if config.action is not None and len(config.action) != dim:
            raise ValueError(f"watchdog: action has {len(config.action)} values; the robot takes {dim}")
        self.dim = dim
        self._tripped: str | None = None
        self._sent_s: float | None = None
        try:
            pickled = cloudpickle.dumps(sender)
        except Exception as error:
            raise WatchdogError(f"the watchdog's sender cannot be pickled: {one_line(error)}") from error
        self._shared = shared_memory.SharedMemory(create=True, size=process.memory_size(dim))
        assert self._shared.buf is not None
        self._memory: memoryview | None = self._shared.buf
        self._memory[:] = bytes(len(self._memory))
        settings = {
            "memory": self._shared.name,
            "parent": os.getpid(),
            "path": sys.path,
            "sender": pickled,
            "dim": dim,
            "deadline_s": config.deadline_s,
            "action": None if config.action is None else tuple(float(value) for value in config.action),
            "resend_s": config.resend_s,
            "resend_hz": config.resend_hz,
            "priority": config.priority,
            "cores": None if config.cores is None else list(config.cores),
        }
        # -P: the package's folder must not stand before the standard library
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(process.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the loop alone
        )
        try:
            self._start(pickle.dumps(settings), start_s)
        except BaseException:
            self.close()
            raise

    def _start(self, settings: bytes, start_s: float) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = ""
        try:
            self._process.stdin.write(len(settings).to_bytes(4, "little") + settings)
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], start_s)[0]:
                raise WatchdogError(
                    f"the watchdog's process did not start within {start_s:g} s; define the sender in a module that "
                    "imports little, or raise start_s"
                )
            answer = self._process.stdout.readline().decode(errors="replace").strip()
        except BrokenPipeError:
            pass
        word, _, rest = answer.partition(" ")
        if word != "ready":
            raise WatchdogError(f"the watchdog could not start: {rest or 'its process ended'}")
        if rest:
            _log.warning("watchdog: %s", rest)

    def check(self, dim: int, rate_hz: float) -> None:
        """Check that it fits a loop.

        Args:
            dim: entries of the loop's actions.
            rate_hz: ticks a second.

        Raises:
            ValueError: its actions have another number of entries, or its deadline is not longer than a tick.
        """
        if dim != self.dim:
            raise ValueError(f"watchdog: it sends {self.dim} numbers; the actions of this loop have {dim}")
        if self.config.deadline_s * rate_hz <= 1:
            raise ValueError(
                f"watchdog: deadline_s={self.config.deadline_s:g} is not longer than a tick of {rate_hz:g} Hz; take "
                f"{2.5 / rate_hz:g}"
            )

    @property
    def tripped(self) -> str | None:
        """Why the safe action was sent: ``"died"``, ``"late"`` or ``"failed"``; None if it was not."""
        self._read_outcome()
        return self._tripped

    @property
    def sent_s(self) -> float | None:
        """When the safe action had been sent, on ``time.monotonic``'s clock; None if it was not."""
        self._read_outcome()
        return self._sent_s

    def beat(self, safe_action: Action) -> None:
        """Say that the loop is alive, before a command is sent.

        Args:
            safe_action: to send if no other heartbeat comes, shape ``(dim,)``, environment units.

        Raises:
            WatchdogTripped: the watchdog has sent already, or is not there any more; the loop must end.
        """
        memory = self._open_memory()
        state = process.read_word(memory, process.STATE)
        if state not in (process.IDLE, process.ARMED):
            raise WatchdogTripped(
                f"the watchdog sent the safe action ({self.tripped or 'closed'}); look for what took so long, and "
                "start again"
            )
        if self._process.poll() is not None:
            raise WatchdogTripped("the watchdog's process has ended; the robot must not move without it")
        process.write_beat(memory, tuple(np.asarray(safe_action, dtype=np.float64).tolist()))
        if state == process.IDLE:
            self._set(process.ARMED)

    def disarm(self) -> None:
        """Pause until the next heartbeat: between episodes nothing is sent."""
        if self._state() == process.ARMED:
            self._set(process.IDLE)

    def trip(self) -> None:
        """Have the safe action sent at once; nothing happens before the first heartbeat."""
        if self._state() == process.ARMED:
            self._set(process.FAILED)

    def close(self, wait_s: float = 5.0) -> None:
        """End its process, after it has sent what it has to send.

        Args:
            wait_s: how long that may take, on top of ``resend_s``.
        """
        if self._memory is None:
            return
        if self._state() in (process.IDLE, process.ARMED):
            self._set(process.CLOSED)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(wait_s + self.config.resend_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._read_outcome()
        self._memory = None
        self._shared.close()
        self._shared.unlink()

    def __enter__(self) -> Watchdog:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send the safe action if an exception ends the block, then close."""
        if error is not None:
            self.trip()
        self.close()

    def _open_memory(self) -> memoryview:
        if self._memory is None:
            raise WatchdogTripped("the watchdog is closed; a loop that is to be watched runs inside its `with` block")
        return self._memory

    def _state(self) -> int:
        return process.read_word(self._open_memory(), process.STATE)

    def _read_outcome(self) -> None:
        """Note what its process did; the memory is gone once it is closed."""
        memory = self._memory
        if memory is None or process.read_word(memory, process.STATE) != process.TRIPPED:
            return
        self._tripped = process.REASONS[process.read_word(memory, process.REASON)]
        sent_ns = process.read_word(memory, process.SENT_NS)
        self._sent_s = sent_ns / 1e9 if sent_ns else None

    def _set(self, state: int) -> None:
        """Change the state, and have the process look at it."""
        process.write_word(self._open_memory(), process.STATE, state)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # it has ended, which the next heartbeat says
            os.write(self._process.stdin.fileno(), b"!")
