"""The robot's side: ask a policy server for actions."""

from __future__ import annotations

import logging
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from specpolicy.serving.auth import client_context
from specpolicy.serving.protocol import (
    ENVELOPE,
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
    SettingsError,
    Unauthorized,
    pack,
    unpack,
)


@dataclass(frozen=True)
class Timing:
    """Where the time of a request went, in milliseconds.

    Attributes:
        infer_ms: sampling, for the whole batch that the request was part of.
        queue_ms: waiting for the network to be free and for company.
        server_ms: from the complete request to the reply, on the server's clock: queue, inference and checks.
        round_trip_ms: from the call to the reply, on the client's clock.
        network_ms: ``round_trip_ms - server_ms``: the wire, and writing and reading on both sides.
    """

    infer_ms: float
    queue_ms: float
    server_ms: float
    round_trip_ms: float
    network_ms: float


@dataclass(frozen=True)
class Reply:
    """Actions to play, and how they were found.

    Attributes:
        actions: shape ``(n_action_steps, action_dim)``, the present step's first, in the environment's units.
        passes: network passes that the sample had to wait for, one after another.
        acceptance: share of drafted steps that were accepted, 0 to 1; None for samplers that draft nothing.
        batch: requests that shared these passes, this one included.
        ignored: names in the observation that the policy does not use.
        session: the server's name for this connection. A new one means that the connection was lost in between:
            observation history and random stream have begun anew.
        timing: where the time went.
    """

    actions: NDArray[np.float32]
    passes: int
    acceptance: float | None
    batch: int
    ignored: tuple[str, ...]
    session: str
    timing: Timing

    @classmethod
    def from_message(cls, message: Mapping[str, Any], session: str, round_trip_ms: float) -> Reply:
        """Read the server's message. Raises ``ProtocolError`` if something is missing in it."""
        try:
            timing = message["server_timing"]
            server_ms = float(timing["server_ms"])
            return cls(
                actions=message["actions"],
                passes=message["passes"],
                acceptance=message["acceptance"],
                batch=message["batch"],
                ignored=tuple(message["ignored"]),
                session=session,
                timing=Timing(
                    infer_ms=float(timing["infer_ms"]),
                    queue_ms=float(timing["queue_ms"]),
                    server_ms=server_ms,
                    round_trip_ms=round_trip_ms,
                    network_ms=round_trip_ms - server_ms,
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the server's reply is not of this protocol: {error!r}") from error


def delays(first_s: float = 0.05, longest_s: float = 2.0) -> Iterator[float]:
    """Seconds to wait, without end: doubling up to ``longest_s``, each shortened by up to a half at random.

    The randomness keeps robots that lost the same server from coming back all at once.
    """
    delay = first_s
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(2 * delay, longest_s)


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
    """An attempt to connect failed in a way that may pass."""


class Connection:
    """A connection that has said hello.

    Args:
        address: of the server.
        timeout_s: for the whole handshake.
        write_s: for each write from then on.
        ping_s: how often to look whether a silent server is still there.

    Raises:
        NotNow: nobody listens, the server is full or going down, or it took too long: worth trying again.
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
            RequestTimeout: no reply in time; the link can be used further.
            ConnectionLost: the link is broken.
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


class Client:
    """A connection to a policy server that mends itself.

    It connects with the first request or on entering the ``with`` block. When the connection breaks during a request,
    that request raises :class:`ConnectionLost`, since its observation is old by the time there is a new connection;
    the next one connects again, waiting longer from attempt to attempt. A new connection is a new session:
    ``Reply.session`` changes, observation history and random stream begin anew.

    Args:
        url: ``ws://host:port``, or ``wss://host:port`` for a server with a certificate.
        token: the server's token, if it wants one. Take it from the environment or a file, not from source code.
        timeout_s: how long to wait for an answer, and for a server that takes in nothing more of a request.
        connect_s: how long to try to connect, all attempts together.
        ca_file: for ``wss``: PEM file of the authority that signed the server's certificate, or of the certificate
            itself if it signed itself; None trusts the system's authorities.
        ping_s: how often to look whether a silent server is still there.

    Raises:
        SettingsError: an argument makes no sense.

    Threads may share a client; their requests take turns.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        connect_s: float = 10.0,
        ca_file: str | Path | None = None,
        ping_s: float = 20.0,
    ) -> None:
        scheme = _scheme(url)
        if ca_file is not None and scheme == "ws":
            raise SettingsError(f"ca_file is for wss:// addresses; this one is {url}")
        if token is not None and not all("!" <= character <= "~" for character in token):
            raise SettingsError("the token must be printable ASCII without spaces; was a line end left on it?")
        if not (timeout_s > 0 and connect_s > 0 and ping_s > 0):
            raise SettingsError("timeout_s, connect_s and ping_s must be more than 0 seconds")
        self._address = Address(url, token, client_context(ca_file) if scheme == "wss" else None)
        self._timeout_s, self._connect_s, self._ping_s = timeout_s, connect_s, ping_s
        self._lock = threading.Lock()
        self._link: Connection | None = None
        self._requests = 0

    def __enter__(self) -> Self:
        with self._lock:
            self._connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the server said on connection: ``policy`` (task, shapes, sampler, whether it is exact), ``session``
        (name and seed), ``limits`` and versions. Connects if need be."""
        with self._lock:
            return self._connected().metadata

    def infer(self, observation: Mapping[str, Any]) -> Reply:
        """Ask for actions.

        Args:
            observation: the parts that ``metadata["policy"]["observations"]`` names, as numeric arrays of shape
                ``(dim,)`` for the present step, or ``(n_obs_steps, dim)`` for all steps that the policy looks
                at. A robot that sends single steps should send every one of them, the others by :meth:`observe`.

        Raises:
            RequestRefused: the observation does not fit; the message says what was expected.
            RequestTimeout: no answer in time. The server may have remembered the observation.
            ConnectionLost: the connection broke on the way.
            ServerUnavailable, Unauthorized, ProtocolError: there was no connection, and none could be made.
            ServerFailed: the policy failed.
        """
        return Reply.from_message(*self._ask("infer", {"observation": dict(observation)}))

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Add a step to the observation history and ask for nothing; argument and errors as of :meth:`infer`."""
        self._ask("observe", {"observation": dict(observation)})

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: forget the observation history, and restart the random stream if there is a seed.

        Args:
            seed: 0 to 2⁶³ − 1; the same seed and observations give the same actions again. None lets the stream go on.
        """
        self._ask("reset", {"seed": seed})

    def close(self) -> None:
        """Hang up. A later request would connect again."""
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link = None

    def _ask(self, kind: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], str, float]:
        with self._lock:
            link = self._connected()
            self._requests += 1
            try:
                message, round_trip_ms = link.ask({ENVELOPE: kind, "id": self._requests, **fields}, self._timeout_s)
            except (ConnectionLost, ProtocolError):
                self._link = None
                link.close()
                raise
            return message, str(link.metadata["session"].get("name")), round_trip_ms

    def _connected(self) -> Connection:
        if self._link is not None and not self._link.open:
            self._link.close()
            self._link = None
        if self._link is None:
            self._link = self._connect()
        return self._link

    def _connect(self) -> Connection:
        deadline, waits = time.monotonic() + self._connect_s, delays()
        reasons: list[str] = []
        while True:
            try:
                return Connection(self._address, max(deadline - time.monotonic(), 0.001), self._timeout_s, self._ping_s)
            except RetryableConnectionError as error:
                if str(error) not in reasons:
                    reasons.append(str(error))  # the last attempt often just runs out of time; an earlier one knows why
                wait = next(waits)
                if time.monotonic() + wait >= deadline:
                    why = "; ".join(reasons)
                    raise ServerUnavailable(
                        f"no connection to {self._address.url} within {self._connect_s:g} s: {why}"
                    ) from error
                time.sleep(wait)


def _scheme(url: str) -> str:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("ws", "wss") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine:
        raise SettingsError(f"{url!r} is no address of a policy server; write ws://host:port or wss://host:port")
    return parts.scheme
