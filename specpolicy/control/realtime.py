"""Real-time scheduling of a loop, where the system allows it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

MCL_CURRENT, MCL_FUTURE = 1, 2


def request_real_time(priority: int = 50, cores: Sequence[int] | None = None, lock_memory: bool = True) -> list[str]:
    """Schedule the calling thread before all ordinary ones, keep its memory, and pin it to cores.

    Threads that it starts later, such as those of inference, are scheduled as usual (``SCHED_RESET_ON_FORK``), but
    inherit the cores. Call it in the thread that runs the loop, after the policy has been loaded: memory that is locked
    cannot be swapped out, so that a page that is not there delays no tick.

    Args:
        priority: of ``SCHED_FIFO``, 1 to 99; below 50 the kernel's interrupts come first.
        cores: to run on; None leaves them.
        lock_memory: whether to call ``mlockall``.

    Returns:
        A line for each thing that is not allowed here, with what to do; empty if all is.

    Raises:
        ValueError: a priority out of range, or cores that this process may not use.
    """
    if isinstance(priority, bool) or not isinstance(priority, int) or not 1 <= priority <= 99:
        raise ValueError(f"priority={priority!r}: expected a whole number from 1 to 99")
    if cores is not None and hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        if not cores or not set(cores) <= allowed:
            raise ValueError(f"cores={list(cores)}: expected some of {sorted(allowed)}, which this process may use")
    notes = []
    if not hasattr(os, "sched_setscheduler"):
        return ["no real-time scheduling on this system: expect ticks to be late under load"]
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as error:
        notes.append(
            f"no SCHED_FIFO ({error.strerror}): allow it with `ulimit -r {priority}`, or rtprio in limits.conf, or "
            "CAP_SYS_NICE"
        )
    if cores is not None:
        try:
            os.sched_setaffinity(0, cores)
        except OSError as error:
            notes.append(f"not pinned to cores {list(cores)} ({error.strerror})")
    if lock_memory:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        except (OSError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or error
            notes.append(f"memory is not locked ({reason}): allow it with `ulimit -l unlimited`, or CAP_IPC_LOCK")
    return notes
