"""The policy server: connections and their limits, sessions, graceful shutdown."""

from __future__ import annotations

import asyncio
import http
import logging
import signal
import ssl
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any
from weakref import WeakSet

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

import specpolicy
from specpolicy.serving.auth import Token, listening_addresses, server_context
from specpolicy.serving.batching import Batcher, Engine, SharedRounds
from specpolicy.serving.protocol import PROTOCOL, SettingsError, pack
from specpolicy.serving.session import ClientDisconnected, Session


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server; the command line shows the same names.

    Attributes:
        host: address to listen on. Any but this machine's own loopback needs a token.
        port: 0 takes a free one.
        max_batch: most requests in a batch.
        max_wait_ms: longest that a request waits for others to share its batch while the network is free.
        max_message_bytes: larger requests close the connection (status 1009).
        max_connections: further ones are turned away (HTTP status 503).
        idle_s: a connection without a complete request for so long is closed.
        send_s: a client that does not take its reply for so long is dropped.
        handshake_s: time to open a connection.
        ping_s: how often to look whether a silent client is still there; without an answer for as long it is dropped.
        grace_s: on shutdown, how long to finish requests under way.
        tls_cert, tls_key: PEM files; both or neither.

    Raises:
        SettingsError: a value is out of its range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 16
    max_wait_ms: float = 2.0
    max_message_bytes: int = 2**20
    max_connections: int = 32
    idle_s: float = 600.0
    send_s: float = 10.0
    handshake_s: float = 10.0
    ping_s: float = 20.0
    grace_s: float = 30.0
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("port", 0), ("max_batch", 1), ("max_message_bytes", 64), ("max_connections", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise SettingsError(f"{name}={value!r}; expected a whole number from {least} on")
        if self.port > 65535:
            raise SettingsError(f"port={self.port}; expected at most 65535")
        for name in ("idle_s", "send_s", "handshake_s", "ping_s", "grace_s"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0 or not isfinite(value):
                raise SettingsError(f"{name}={value!r}; expected seconds, more than 0")
        if not isinstance(self.max_wait_ms, int | float) or not 0 <= self.max_wait_ms < 1e6:
            raise SettingsError(f"max_wait_ms={self.max_wait_ms!r}; expected milliseconds, 0 or more")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("tls_cert and tls_key go together; give both, or neither")


MAX_UNSENT_BYTES = 4 * 2**20
"""Replies and pongs that may wait for a client to read them; far more than any reply."""


def guarded_connection(most: int, send_s: float) -> type[ServerConnection]:
    """Make a kind of connection that no client can hold on to by not reading, and of which there are only so many.

    The library answers pings without looking at the write buffer, and waits without a limit for a client to read
    before it sends its own pings and closes. Here a connection is cut off when its write buffer stays full for
    ``send_s``, or exceeds :data:`MAX_UNSENT_BYTES`.

    Args:
        most: connections at a time; further ones are cut off as they come.
        send_s: seconds.

    Returns:
        For ``create_connection`` of ``websockets.asyncio.server.serve``.
    """
    present: WeakSet[ServerConnection] = WeakSet()

    class GuardedConnection(ServerConnection):
        _cut_off: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            present.add(self)
            if len(present) > most:
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            present.discard(self)
            self._stop_timer()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._cut_off = self.loop.call_later(send_s, self._abort, f"has read nothing for {send_s:g} s")

        def resume_writing(self) -> None:
            self._stop_timer()
            super().resume_writing()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
                self._abort("sends without reading")

        def _stop_timer(self) -> None:
            if self._cut_off is not None:
                self._cut_off.cancel()
                self._cut_off = None

        def _abort(self, reason: str) -> None:
            if not self.transport.is_closing():
                _log.warning("%s %s; dropped", _peer(self), reason)
            self.transport.abort()

    return GuardedConnection


_log = logging.getLogger(__name__)
_MESSAGE_OVERHEAD = 4096  # names, types and shapes around an observation's bytes
_LIMITS = ("max_message_bytes", "max_connections", "idle_s", "max_batch", "max_wait_ms")
_GOING_DOWN = "the server is shutting down"
# Handshakes that fail are the other side's affair and would each log a traceback; at its most talkative level the
# library logs the headers, and with them the token.
_quiet = logging.getLogger(__name__ + ".websockets")
_quiet.setLevel(logging.CRITICAL)


class PolicyServer:
    """A server that answers robots with a policy's actions.

    Args:
        engine: samples.
        settings: address, batching and limits.
        token: what clients must show; None lets everyone in who can reach the address.
        rounds: of the engine, to batch continuously; None runs whole batches.

    Raises:
        SettingsError: the address can be reached from other machines and there is no token, the certificate cannot be
            used, or images of all the policy's steps do not fit into a message.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        token: Token | None = None,
        rounds: SharedRounds | None = None,
    ) -> None:
        needed = sum(part.nbytes for part in engine.observations.zeros().values())
        if engine.observations.images and settings.max_message_bytes < needed + _MESSAGE_OVERHEAD:
            raise SettingsError(
                f"max_message_bytes={settings.max_message_bytes} is less than the policy's observation takes, "
                f"{needed} bytes; set max_message_bytes={2 ** (needed + _MESSAGE_OVERHEAD - 1).bit_length()}"
            )
        self._engine, self._settings, self._token, self._rounds = engine, settings, token, rounds
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
            self._engine.run,
            settings.max_batch,
            settings.max_wait_ms / 1e3,
            sessions=lambda: len(self._sessions),
            rounds=self._rounds,
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
                # sessions, and as many that are still connecting
                create_connection=guarded_connection(2 * settings.max_connections + 8, settings.send_s),
                logger=_quiet,
            )
        except (OSError, OverflowError) as error:
            await self._batcher.stop()
            raise SettingsError(
                f"cannot listen on {settings.host}, port {settings.port}: {error}; choose another with host= and port="
            ) from error
        self._batcher.start()

    async def stop(self) -> None:
        """Take no more requests, answer those under way for at most ``grace_s``, and hang up."""
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
            closing = asyncio.gather(*map(self._hang_up, list(self._sessions)))
            await asyncio.sleep(0)  # the reason is sent before sessions give up
            for session in list(self._sessions.values()):
                session.leave()
            await closing
            await finished
        await self._batcher.stop()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._token is not None and not self._token.verify(request.headers.get_all("Authorization")):
            _log.warning("%s showed no token, or a wrong one", _peer(connection))
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "this server wants the header Authorization: Api-Key <its token>\n"
            )
        if len(self._sessions) >= self._settings.max_connections:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, self._full() + "\n")
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        if len(self._sessions) >= self._settings.max_connections:  # several were admitted to the last place
            await self._close(connection, CloseCode.TRY_AGAIN_LATER, self._full())
            return
        assert self._batcher is not None
        session = Session(self._engine, self._batcher)
        self._sessions[connection] = session
        gone = asyncio.create_task(connection.wait_closed())
        gone.add_done_callback(lambda _: session.leave())
        _log.info("session %s: %s", session.name, _peer(connection))
        try:
            await self._answer_all(connection, session)
        except (ConnectionClosed, ClientDisconnected):
            pass
        except Exception:
            _log.exception("session %s failed", session.name)
            await self._close(connection, CloseCode.INTERNAL_ERROR, "internal error; the server's log has the details")
        finally:
            del self._sessions[connection]
            self._batcher.sessions_changed()
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
                await self._close(connection, CloseCode.GOING_AWAY, f"no request for {self._settings.idle_s:g} s")
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
            raise ClientDisconnected from None

    async def _hang_up(self, connection: ServerConnection) -> None:
        await self._close(connection, CloseCode.GOING_AWAY, _GOING_DOWN)

    async def _close(self, connection: ServerConnection, code: CloseCode, reason: str) -> None:
        """Say good-bye, and cut off who does not listen."""
        try:
            async with asyncio.timeout(2 * _close_s(self._settings)):
                await connection.close(code, reason)
        except TimeoutError:
            connection.transport.abort()

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


_log = logging.getLogger(__name__)


def run_until_stopped(server: PolicyServer, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then answer the requests under way and return. A second signal ends the process.

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
    _log.info("finishing the requests under way; the same signal again ends at once")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    await server.stop()
