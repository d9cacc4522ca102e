"""The process of a watchdog: waits for heartbeats to stop, and sends the safe action.

It is started by its path, not imported as part of the package: it takes the standard library alone, so that it starts
within milliseconds, fits into locked memory, and shares nothing with what it watches. On its standard input come the
settings, then a byte whenever it is to look at once; on its standard output go ``ready`` or a line of what is wrong.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import select
import struct
import sys
import time
from contextlib import suppress
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

IDLE, ARMED, CLOSED, FAILED, TRIPPED = range(5)
"""Not yet watching; watching; done, send nothing; an exception ended the loop, send at once; has sent."""

HEADER = struct.Struct("=6q")
"""State, sequence number, monotonic nanoseconds of the last heartbeat, of the trip, of the first send's end; reason."""
STATE, SEQUENCE, BEAT_NS, TRIPPED_NS, SENT_NS, REASON = (8 * index for index in range(6))
REASONS = ("", "died", "late", "failed")
_WORD = struct.Struct("=q")


def read_word(memory: Any, offset: int) -> int:
    """Read one number.

    Args:
        memory: the shared one.
        offset: of the number, bytes.

    Returns:
        The number.
    """
    word: int = _WORD.unpack_from(memory, offset)[0]
    return word


def write_word(memory: Any, offset: int, value: int) -> None:
    """Write one number; aligned to its size, so that no reader sees half of it.

    Args:
        memory: the shared one.
        offset: of the number, bytes.
        value: to write.
    """
    _WORD.pack_into(memory, offset, value)


def write_beat(memory: Any, action: tuple[float, ...]) -> None:
    """Write a heartbeat: the safe action into the slot that is not in use, then the sequence number, then the time.

    Args:
        memory: the shared one, of ``memory_size(len(action))`` bytes.
        action: to send if this is the last heartbeat.
    """
    sequence = read_word(memory, SEQUENCE) + 1
    struct.pack_into(f"={len(action)}d", memory, HEADER.size + (sequence % 2) * 8 * len(action), *action)
    write_word(memory, SEQUENCE, sequence)
    write_word(memory, BEAT_NS, time.monotonic_ns())


def read_action(memory: Any, dim: int) -> tuple[float, ...]:
    """Read the safe action of the last heartbeat; again, if another heartbeat came meanwhile.

    Args:
        memory: the shared one.
        dim: entries of an action.

    Returns:
        Its entries.
    """
    while True:
        sequence = read_word(memory, SEQUENCE)
        action = struct.unpack_from(f"={dim}d", memory, HEADER.size + (sequence % 2) * 8 * dim)
        if read_word(memory, SEQUENCE) == sequence:
            return action


def memory_size(dim: int) -> int:
    """Compute the bytes of shared memory for actions of ``dim`` entries: the header and two slots."""
    return HEADER.size + 2 * 8 * dim


def watch(memory: Any, settings: dict[str, Any], sender: Any, parent: int | None, wake: int) -> str:
    """Wait until the loop dies, fails or is late, then send; or until it is closed.

    Args:
        memory: the shared one.
        settings: ``dim``, ``deadline_s``, ``resend_s`` and ``resend_hz``.
        sender: sends an action.
        parent: file descriptor that becomes readable when the loop's process ends; None where there is none.
        wake: file descriptor with a byte for each change of state, closed when the loop's process ends.

    Returns:
        The reason of the trip, ``""`` if the loop was closed.
    """
    deadline_ns = int(settings["deadline_s"] * 1e9)
    watched = [wake] if parent is None else [wake, parent]
    while True:
        state = read_word(memory, STATE)
        remaining_s = None
        if state == CLOSED:
            return ""
        if state == FAILED:
            reason = "failed"
            break
        if state == ARMED:
            remaining_s = (read_word(memory, BEAT_NS) + deadline_ns - time.monotonic_ns()) / 1e9
            if remaining_s <= 0:
                reason = "late"
                break
        ready = select.select(watched, [], [], remaining_s)[0]
        ended = parent in ready or (wake in ready and not os.read(wake, 64))
        if ended and read_word(memory, STATE) in (IDLE, CLOSED):
            return ""  # nothing had been sent yet, or everything was over
        if ended and read_word(memory, STATE) == ARMED:
            reason = "died"
            break
    write_word(memory, TRIPPED_NS, time.monotonic_ns())
    write_word(memory, REASON, REASONS.index(reason))
    write_word(memory, STATE, TRIPPED)
    _send(memory, settings, sender)
    return reason


def _send(memory: Any, settings: dict[str, Any], sender: Any) -> None:
    """Send the safe action, as often as the settings say; what fails is tried again until then, and at least once."""
    action = settings["action"] or read_action(memory, settings["dim"])
    until, sent, problem = time.monotonic() + settings["resend_s"], False, ""
    while True:
        try:
            sender(action)
            if not sent:
                write_word(memory, SENT_NS, time.monotonic_ns())
            sent = True
        except Exception as error:
            if str(error) != problem:
                problem = str(error)
                print(f"watchdog: the safe action could not be sent: {problem}", file=sys.stderr, flush=True)
        if time.monotonic() >= until:
            return
        time.sleep(1 / settings["resend_hz"])


def run_watchdog() -> None:
    """Read the settings, say that all is ready, and watch."""
    size = int.from_bytes(sys.stdin.buffer.read(4), "little")
    settings: dict[str, Any] = pickle.loads(sys.stdin.buffer.read(size))
    sys.path[:] = settings["path"]
    # attaching would start a process that unlinks the memory when this one ends (Python 3.13 has track=False)
    resource_tracker.register = resource_tracker.unregister = lambda name, kind: None  # type: ignore[assignment]
    try:
        sender = pickle.loads(settings["sender"])
        if hasattr(sender, "open"):
            sender.open()
        shared = shared_memory.SharedMemory(settings["memory"])
        parent = os.pidfd_open(settings["parent"]) if hasattr(os, "pidfd_open") else None
        notes = _real_time(settings)
    except Exception as error:
        print("error: " + " ".join(f"{type(error).__name__}: {error}".split()), flush=True)
        return
    print("ready " + "; ".join(notes), flush=True)
    sys.stdout.close()
    reason = watch(shared.buf, settings, sender, parent, sys.stdin.fileno())
    if reason:
        said = "was late" if reason == "late" else reason
        print(f"watchdog: the loop {said}; the safe action was sent", file=sys.stderr, flush=True)
    shared.close()
    if reason == "died":
        with suppress(FileNotFoundError):
            shared.unlink()  # there is nobody else to do it


def _real_time(settings: dict[str, Any]) -> list[str]:
    """Have this process scheduled in real time; by path, for the package is not to be imported."""
    if settings["priority"] is None:
        return []
    spec = importlib.util.spec_from_file_location("realtime", Path(__file__).with_name("realtime.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notes: list[str] = module.request_real_time(settings["priority"], settings["cores"])
    return notes


if __name__ == "__main__":
    run_watchdog()
