"""The policy server: listens, keeps a session for each connection, and goes down without dropping what it has begun."""

from __future__ import annotations

import asyncio
import http
import logging
import ssl
from dataclasses import asdict
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

import specpolicy

from .access import Token, listening_addresses
from .batching import Batcher
from .doorway import doorway
from .engine import Engine
from .errors import SettingsError
from .messages import PROTOCOL
from .session import Gone, Session
from .settings import ServerSettings
from .tls import server_context
from .wire import pack

_log = logging.getLogger(__name__)
_LIMITS = ("max_message_bytes", "max_connections", "idle_s", "max_batch", "max_wait_ms")
_GOING_DOWN = "the server is shutting down"
# Handshakes that fail are the other side's affair and would each log a traceback; at its most talkative level the
# library logs the headers, and with them the token.
_quiet = logging.getLogger(__name__ + ".websockets")
_quiet.setLevel(logging.CRITICAL)


class PolicyServer:
    """Answers robots with a policy's actions.

    Args:
        engine: samples.
        settings: address, batching and limits.
        token: what clients must show; None lets everyone in who can reach the address.

    Raises:
        SettingsError: the address can be reached from other machines and there is no token, or the certificate cannot
            be used.
    """

    def __init__(self, engine: Engine, settings: ServerSettings, token: Token | None = None) -> None:
        self._engine, self._settings, self._token = engine, settings, token
        self._addresses = listening_addresses(settings.host, token)
        self._tls: ssl.SSLContext | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._tls = server_context(settings.tls_cert, settings.tls_key)
        self._sessions: dict[ServerConnection, Session] = {}
        self._closing = False
        self._batcher: Batcher | None = None
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        if self._server is None:
            raise SettingsError("the server has not been started")
        address, port = next(iter(self._server.sockets)).getsockname()[:2]
        host = f"[{address}]" if ":" in address else address
        return f"{'ws' if self._tls is None else 'wss'}://{host}:{port}"

    async def start(self) -> None:
        """Listen. Raises ``SettingsError`` if the address is taken or not this machine's."""
        settings = self._settings
        self._batcher = Batcher(
            self._engine.run, settings.max_batch, settings.max_wait_ms / 1e3, company=lambda: len(self._sessions)
        )
        try:
            self._server = await serve(
                self._converse,
                self._addresses,  # type: ignore[arg-type]  # asyncio takes several
                settings.port,
                ssl=self._tls,
                process_request=self._admit,
                origins=[None],  # browsers name one: no page may talk to a server on its reader's machine
                compression=None,
                open_timeout=settings.handshake_s,
                close_timeout=_close_s(settings),
                ping_interval=settings.ping_s,
                ping_timeout=settings.ping_s,
                max_size=settings.max_message_bytes,
                max_queue=1,
                create_connection=doorway(2 * settings.max_connections + 8),  # sessions, and as many at the door
                logger=_quiet,
            )
        except (OSError, OverflowError) as error:
            await self._batcher.stop()
            raise SettingsError(
                f"cannot listen on {settings.host}, port {settings.port}: {error}; choose another with host= and port="
            ) from error
        self._batcher.start()

    async def stop(self) -> None:
        """Take no more requests, answer those that have begun for at most ``grace_s``, and hang up."""
        if self._server is None or self._batcher is None:
            return
        self._closing = True
        self._server.close(close_connections=False)
        await asyncio.sleep(0)  # a session that has just been handed a request gets to say so
        idle = [self._hang_up(connection) for connection, session in self._sessions.items() if not session.busy]
        finished = asyncio.gather(self._server.wait_closed(), *idle)
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await asyncio.shield(finished)
        except TimeoutError:
            _log.warning("gave up %d requests after %g s", len(self._sessions), self._settings.grace_s)
            for connection, session in list(self._sessions.items()):
                session.leave()
                await self._hang_up(connection)
            await finished
        await self._batcher.stop()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._token is not None and not self._token.admits(request.headers.get_all("Authorization")):
            _log.warning("%s showed no token, or a wrong one", _peer(connection))
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "this server wants the header Authorization: Api-Key <its token>\n"
            )
        if len(self._sessions) >= self._settings.max_connections:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, self._full() + "\n")
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        if len(self._sessions) >= self._settings.max_connections:  # several were admitted to the last place
            await connection.close(CloseCode.TRY_AGAIN_LATER, self._full())
            return
        assert self._batcher is not None
        session = Session(self._engine, self._batcher)
        self._sessions[connection] = session
        gone = asyncio.create_task(connection.wait_closed())
        gone.add_done_callback(lambda _: session.leave())
        _log.info("session %s: %s", session.name, _peer(connection))
        try:
            await self._answer_all(connection, session)
        except (ConnectionClosed, Gone):
            pass
        except Exception:
            _log.exception("session %s failed", session.name)
            await connection.close(CloseCode.INTERNAL_ERROR, "internal error; the server's log has the details")
        finally:
            del self._sessions[connection]
            self._batcher.look_again()
            gone.cancel()
            _log.info("session %s ended", session.name)

    async def _answer_all(self, connection: ServerConnection, session: Session) -> None:
        await self._send(connection, pack(self._metadata(session)))
        while not self._closing:
            session.busy = False
            try:
                async with asyncio.timeout(self._settings.idle_s):
                    frame = await connection.recv()
            except TimeoutError:
                await connection.close(CloseCode.GOING_AWAY, f"no request for {self._settings.idle_s:g} s")
                return
            session.busy = True
            await self._send(connection, await session.answer(frame))
        await self._hang_up(connection)

    async def _send(self, connection: ServerConnection, frame: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._settings.send_s):
                await connection.send(frame)
        except TimeoutError:
            _log.warning("%s takes no replies; dropped", _peer(connection))
            connection.transport.abort()
            raise Gone from None

    async def _hang_up(self, connection: ServerConnection) -> None:
        await connection.close(CloseCode.GOING_AWAY, _GOING_DOWN)

    def _metadata(self, session: Session) -> dict[str, Any]:
        limits = asdict(self._settings)
        return {
            "server": "specpolicy",
            "version": specpolicy.__version__,
            "protocol": PROTOCOL,
            "policy": self._engine.describe(),
            "session": {"name": session.name, "seed": session.seed},
            "limits": {name: limits[name] for name in _LIMITS},
        }

    def _full(self) -> str:
        return f"the server is full: it serves {self._settings.max_connections} connections"


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


def _close_s(settings: ServerSettings) -> float:
    return min(settings.send_s, 2.0)
