"""The robot's side: ask a policy server for actions."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsIndex
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from specpolicy.serving.auth import client_context
from specpolicy.serving.connection import Address, Connection, RetryableConnectionError
from specpolicy.serving.protocol import (
    ENVELOPE,
    ConnectionLost,
    FrameError,
    ProtocolError,
    ServerUnavailable,
    SettingsError,
    pack,
)


@dataclass(frozen=True)
class Timing:
    """Where the time of a request went, in milliseconds.

    Attributes:
        infer_ms: sampling, for the whole batch that the request was part of.
        queue_ms: waiting for the network to be free and for other requests.
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
        passes: sequential network evaluations (NFE) of the sample.
        acceptance: share of drafted steps that were accepted, 0 to 1; None for samplers that draft nothing.
        batch: requests in the batch, this one included.
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
        """Read the server's message.

        Args:
            message: decoded.
            session: name of the session.
            round_trip_ms: on this side's clock.

        Returns:
            The reply.

        Raises:
            ProtocolError: something is missing in it.
        """
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


FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 2.0
"""Between attempts to connect."""


class Client:
    """A connection to a policy server that reconnects by itself.

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
        self._connection: Connection | None = None
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
        """What the server said on connection; connects if need be.

        Entries: ``policy`` (task, shapes, sampler, whether it is exact), ``session`` (name and seed), ``limits`` and
        versions.
        """
        with self._lock:
            return self._connected().metadata

    def infer(self, observation: Mapping[str, Any], prefix: Any = None) -> Reply:
        """Ask for actions.

        Args:
            observation: the parts that ``metadata["policy"]["observations"]`` names, as numeric arrays of shape
                ``(dim,)`` for the present step, or ``(n_obs_steps, dim)`` for all steps that the policy looks
                at. A robot that sends single steps should send every one of them, the others by :meth:`observe`.
            prefix: the actions that the robot will play from the present step on until the reply is there, shape
                ``(d, action_dim)``; for policies whose ``metadata["policy"]["max_delay"]`` is d or more. The actions of
                the reply begin with them. None: none.

        Raises:
            FrameError: a part that the policy needs cannot be sent, e.g. objects; the message names it.
            RequestRefused: observation or prefix do not fit; the message says what was expected.
            RequestTimeout: no answer in time. The server may have remembered the observation.
            ConnectionLost: the connection broke on the way.
            ServerUnavailable, Unauthorized, ProtocolError: there was no connection, and none could be made.
            ServerFailed: the policy failed.
        """
        fields = {"observation": dict(observation)} | ({} if prefix is None else {"prefix": prefix})
        message, session, round_trip_ms, left_out = self._ask("infer", fields)
        reply = Reply.from_message(message, session, round_trip_ms)
        return replace(reply, ignored=tuple(sorted({*reply.ignored, *left_out}))) if left_out else reply

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Add a step to the observation history without asking for actions; argument and errors as of :meth:`infer`."""
        self._ask("observe", {"observation": dict(observation)})

    def reset(self, seed: SupportsIndex | None = None, repeat: SupportsIndex = 0) -> None:
        """Begin an episode: forget the observation history, and restart the random stream if there is a seed.

        Args:
            seed: 0 to 2⁶³ − 1; the same seed, repeat and observations give the same actions as in ``evaluate`` and in
                a control loop. None lets the stream go on.
            repeat: number of the repeat from this seed, from 0 on.

        Raises:
            RequestRefused: a number is out of range.
        """
        fields = {} if seed is None else {"seed": operator.index(seed)}
        self._ask("reset", fields | ({"repeat": operator.index(repeat)} if repeat else {}))

    def close(self) -> None:
        """Hang up. A later request would connect again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _ask(self, kind: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], str, float, list[str]]:
        """Ask; returns the reply, the session, the round trip, and what could not be sent and was not needed."""
        with self._lock:
            connection, left_out = self._connected(), list[str]()
            self._requests += 1
            request = {ENVELOPE: kind, "id": self._requests, **fields}
            try:
                try:
                    message, round_trip_ms = connection.ask(request, self._timeout_s)
                except FrameError:
                    if "observation" not in fields:
                        raise
                    sendable, left_out = _sendable(fields["observation"], connection.metadata)
                    message, round_trip_ms = connection.ask(request | {"observation": sendable}, self._timeout_s)
            except (ConnectionLost, ProtocolError):
                self._connection = None
                connection.close()
                raise
            return message, str(connection.metadata["session"].get("name")), round_trip_ms, left_out

    def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.open:
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> Connection:
        deadline = time.monotonic() + self._connect_s
        reasons = dict[str, None]()  # the last attempt often just runs out of time; an earlier one knows why

        def attempt() -> Connection:
            try:
                return Connection(self._address, max(deadline - time.monotonic(), 0.001), self._timeout_s, self._ping_s)
            except RetryableConnectionError as error:
                reasons[str(error)] = None
                raise

        # random waits: robots that lost the same server must not come back all at once
        retrying = Retrying(
            retry=retry_if_exception_type(RetryableConnectionError),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, min=FIRST_WAIT_S / 2, max=LONGEST_WAIT_S),
            stop=stop_before_delay(self._connect_s),
        )
        try:
            return retrying(attempt)
        except RetryError as error:
            raise ServerUnavailable(
                f"no connection to {self._address.url} within {self._connect_s:g} s: {'; '.join(reasons)}"
            ) from error.last_attempt.exception()


def _sendable(observation: Mapping[Any, Any], metadata: Mapping[str, Any]) -> tuple[dict[Any, Any], list[str]]:
    """Split an observation into what can be sent, and the names of what cannot and is not needed by the policy."""
    policy = metadata.get("policy")
    needed = policy.get("observations", observation) if isinstance(policy, dict) else observation
    sendable, left_out = dict[Any, Any](), list[str]()
    for name, value in observation.items():
        try:
            pack({"value": value})
            sendable[name] = value
        except FrameError as error:
            if name in needed:
                raise FrameError(f"observation[{name!r}]: {error}") from error
            left_out.append(str(name))
    return sendable, left_out


def _scheme(url: str) -> str:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("ws", "wss") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine:
        raise SettingsError(f"{url!r} is no address of a policy server; write ws://host:port or wss://host:port")
    return parts.scheme
