"""A process from which workers are forked, after it has done once what each of them would begin with.

Importing a simulator takes seconds, forking a process that has imported it a hundredth of one, and what was imported
shares its memory. Forking is safe only as long as a process has a single thread and no device in use; a nursery that
finds more threads ends itself, and workers are started from nothing instead, as they are on systems other than Linux.

multiprocessing has one nursery in each process, which it calls fork server: the first warm-up makes it. Workers of
another kind can be born from it, too, and import for themselves what they lack.
"""

from __future__ import annotations

import base64
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from gymnasium.vector.utils import CloudpickleWrapper

_WARM_UP = "SPECPOLICY_NURSERY_WARM_UP"
_PATIENCE_S = 120
_works = sys.platform == "linux"  # elsewhere a process cannot count its threads, or cannot fork


def start(target: Callable[..., None], arguments: tuple[Any, ...], warm_up: Callable[[], Any] | None) -> BaseProcess:
    """Start a daemonic process with ``target(*arguments)``.

    Args:
        target: importable.
        arguments: can be pickled.
        warm_up: called in the nursery before anything is forked there; its failures are ignored, for the worker will
            meet and report them. None starts the process from nothing.
    """
    global _works
    with _without_main():
        if warm_up is not None and _works:
            multiprocessing.forkserver.set_forkserver_preload([__name__])
            forked = multiprocessing.get_context("forkserver").Process(target=target, args=arguments, daemon=True)
            try:
                with _told(warm_up):
                    forked.start()
                return forked
            except (EOFError, OSError):
                _works = False
        spawned = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
        spawned.start()
        return spawned


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep multiprocessing from running the main program's file again in each process: nothing there is needed."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _told(warm_up: Callable[[], Any]) -> Iterator[None]:
    """Processes that start inside the block find what to do in their environment; only a nursery looks for it."""
    os.environ[_WARM_UP] = base64.b64encode(pickle.dumps((sys.path, CloudpickleWrapper(warm_up)))).decode()
    try:
        yield
    finally:
        del os.environ[_WARM_UP]


def _warm_up() -> None:
    signal.alarm(_PATIENCE_S)  # ends the process
    try:
        told = base64.b64decode(os.environ.pop(_WARM_UP))
        sys.path, warm_up = pickle.loads(told)
        warm_up.fn()
    except Exception:  # the worker that needs it will fail in the same way, and say so
        pass
    signal.alarm(0)
    if len(os.listdir("/proc/self/task")) > 1:
        os._exit(1)


if _WARM_UP in os.environ:  # imported by multiprocessing, in the nursery
    _warm_up()
