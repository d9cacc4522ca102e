"""A bound on connections that have not said anything yet, which no handshake can turn away."""

from __future__ import annotations

import asyncio
from weakref import WeakSet

from websockets.asyncio.server import ServerConnection


def doorway(most: int) -> type[ServerConnection]:
    """A kind of connection of which there are at most ``most`` at a time; further ones are cut off as they come."""
    present: WeakSet[ServerConnection] = WeakSet()

    class Visitor(ServerConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            present.add(self)
            if len(present) > most:
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            present.discard(self)
            super().connection_lost(exc)

    return Visitor
