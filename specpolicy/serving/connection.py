"""The client's side of one connection: handshake, requests, and what can go wrong with them."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from specpolicy.serving.protocol import (
    PROTOCOL,
    ConnectionLost,
    FrameError,
    ProtocolError,
    RequestRefused,
    RequestTimeout,
    RequestTooLarge,
    ServerFailed,
    ServerUnavailable,
    ServingError,
    Unauthorized,
    pack,
    unpack,
)

# At its most talkative level the library logs the headers, and with them the token.
_quiet = logging.getLogger(__name__ + ".websockets")
_quiet.setLevel(logging.CRITICAL)
_MAX_REPLY_BYTES = 64 * 2**20
_CLOSE_S = 1.0
_TURN_AWAY = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Address:
    """Where the server is, and what it wants to see.

    Attributes:
        url: ``ws://host:port`` or ``wss://host:port``.
        token: sent in the header ``Authorization``; None sends none.
        tls: for ``wss://``; None otherwise.
    """

    url: str
    token: str | None
    tls: ssl.SSLContext | None


class RetryableConnectionError(ServerUnavailable):
    """An attempt to connect failed and may succeed later."""


class Connection:
    """A connection that has said hello.

    Args:
        address: of the server.
        timeout_s: for the whole handshake.
        write_s: for each write from then on.
        ping_s: how often to look whether a silent server is still there.

    Raises:
        RetryableConnectionError: nobody listens, the server is full or going down, or it took too long; try again.
        Unauthorized: the token is missing or wrong.
        ProtocolError: something else listens there, or its certificate is not trusted.
    """

    def __init__(self, address: Address, timeout_s: float, write_s: float, ping_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with ExitStack() as stack:
            self._connection = stack.enter_context(_connect(address, timeout_s, ping_s))
            try:
                hello = self._connection.recv(max(deadline - time.monotonic(), 0.001))
            except ConnectionClosed as error:
                raise RetryableConnectionError(f"the server hung up: {_reason(error)}") from error
            except TimeoutError as error:
                raise RetryableConnectionError("the server accepted the connection and then said nothing") from error
            self.metadata = _hello(hello)
            _limit_writes(self._connection, write_s)
            self._stack = stack.pop_all()

    @property
    def open(self) -> bool:
        """Whether requests can be sent, as far as this side knows."""
        return self._connection.state is State.OPEN

    def close(self) -> None:
        """Say good-bye, and wait for the other side at most a second."""
        self._stack.close()

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], float]:
        """Send a request and wait for the reply with the same id; replies to earlier requests are dropped.

        Returns:
            The reply, and the round trip in milliseconds, writing and reading included.

        Raises:
            FrameError, RequestTooLarge: it was not sent.
            RequestRefused, ServerFailed: the server says so.
            RequestTimeout: no reply in time; the connection can be used further.
            ConnectionLost: the connection is broken.
            ProtocolError: the reply cannot be read.
        """
        start = time.perf_counter()
        frame, deadline = pack(request), time.monotonic() + timeout_s
        limit = self.metadata["limits"]["max_message_bytes"]
        if len(frame) > limit:
            raise RequestTooLarge(f"the request has {len(frame)} bytes; this server accepts {limit}")
        try:
            self._connection.send(frame)
            while True:
                reply = _read(self._connection.recv(max(deadline - time.monotonic(), 0.001)))
                if reply.get("id") == request["id"]:
                    break
                if not isinstance(reply.get("id"), int) or reply["id"] > request["id"]:
                    raise ProtocolError(f"asked {request['id']}, the server answered {reply.get('id')!r:.80}")
        except TimeoutError as error:
            raise RequestTimeout(f"no answer within {timeout_s:g} s") from error
        except (ConnectionClosed, OSError) as error:
            raise ConnectionLost(f"the connection to the server was lost: {_reason(error)}") from error
        if "error" in reply:
            raise _answered(reply["error"])
        return reply, 1e3 * (time.perf_counter() - start)


def _connect(address: Address, timeout_s: float, ping_s: float) -> ClientConnection:
    headers = {} if address.token is None else {"Authorization": f"Bearer {address.token}"}
    try:
        return connect(
            address.url,
            ssl=address.tls,
            additional_headers=headers,
            compression=None,  # it costs more time than it saves on small arrays of noise
            proxy=None,
            open_timeout=timeout_s,
            close_timeout=_CLOSE_S,
            ping_interval=ping_s,
            ping_timeout=ping_s,
            max_size=_MAX_REPLY_BYTES,
            logger=_quiet,
        )
    except InvalidStatus as error:
        status, body = error.response.status_code, error.response.body.decode(errors="replace").strip()[:200]
        if status in (401, 403):
            raise Unauthorized(f"the server at {address.url} refused: {body or status}") from error
        if status in _TURN_AWAY:
            raise RetryableConnectionError(f"the server turned the connection away: {body or status}") from error
        raise ProtocolError(f"{address.url} answered with HTTP status {status}; is it a policy server?") from error
    except ssl.SSLCertVerificationError as error:
        raise ProtocolError(
            f"the certificate of {address.url} is not trusted ({error.verify_message}); give the authority's "
            "certificate as ca_file, and use a host name that is in it"
        ) from error
    except (OSError, EOFError) as error:
        # a server without a certificate hangs up on the handshake, as does one that is just dying
        hint = "; if the server has no certificate, use ws://" if isinstance(error, ssl.SSLError) else ""
        raise RetryableConnectionError((str(error) or type(error).__name__) + hint) from error
    except InvalidHandshake as error:
        if isinstance(error, InvalidMessage) and isinstance(error.__cause__, EOFError):
            raise RetryableConnectionError(
                "it hung up without an answer; if the server has a certificate, use wss://"
            ) from error
        raise ProtocolError(f"{address.url} is no policy server: {error}") from error


def _hello(frame: str | bytes) -> dict[str, Any]:
    metadata = _read(frame)
    limits, session = metadata.get("limits"), metadata.get("session")
    told = isinstance(limits, dict) and isinstance(limits.get("max_message_bytes"), int) and isinstance(session, dict)
    if metadata.get("protocol") != PROTOCOL or not told:
        raise ProtocolError(
            f"the server speaks protocol {metadata.get('protocol')!r:.80} of {metadata.get('server')!r:.80}; this "
            f"client speaks protocol {PROTOCOL} of specpolicy"
        )
    return metadata


def _read(frame: str | bytes) -> dict[str, Any]:
    if isinstance(frame, str):
        raise ProtocolError(f"the server says: {frame[:500]}")
    try:
        reply = unpack(frame)
    except FrameError as error:
        raise ProtocolError(f"the server's reply cannot be read: {error}") from error
    if not isinstance(reply, dict):
        raise ProtocolError(f"the server's reply is a {type(reply).__name__}; expected a map")
    return reply


def _answered(error: Any) -> ServingError:
    kind, message = (error.get("kind"), error.get("message")) if isinstance(error, dict) else (None, error)
    return RequestRefused(str(message)) if kind == "refused" else ServerFailed(str(message))


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionClosed) and error.rcvd is not None:
        return f"{error.rcvd.reason or 'no reason given'} (status {error.rcvd.code})"
    return str(error) or type(error).__name__


def _limit_writes(connection: ClientConnection, timeout_s: float) -> None:
    """Let a write fail when the other side takes nothing for so long; the library's own writes wait without end."""
    if hasattr(socket, "SO_SNDTIMEO") and struct.calcsize("ll") == 16:
        whole, part = divmod(timeout_s, 1.0)
        limit = struct.pack("ll", int(whole), int(1e6 * part))
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
