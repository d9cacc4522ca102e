"""Running a server until somebody stops it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from .server import PolicyServer

_log = logging.getLogger(__name__)


def run_until_stopped(server: PolicyServer, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then answer what has begun and return. A second signal ends the process.

    Args:
        server: not started yet.
        started: called with the address once it listens.

    Raises:
        SettingsError: it cannot listen.
    """
    asyncio.run(_run(server, started))


async def _run(server: PolicyServer, started: Callable[[str], None]) -> None:
    await server.start()
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    started(server.url)
    await stopped.wait()
    _log.info("finishing what has begun; the same signal again ends at once")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    await server.stop()
