"""The robot's side: ask a policy server for actions."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from .backoff import delays
from .errors import ConnectionLost, ProtocolError, ServerUnavailable, SettingsError
from .link import Address, Link, NotNow
from .messages import ENVELOPE
from .reply import Reply
from .tls import client_context


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
        self._link: Link | None = None
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
                ``(dim,)`` for the present step, or ``(observation_horizon, dim)`` for all steps that the policy looks
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

    def _connected(self) -> Link:
        if self._link is not None and not self._link.open:
            self._link.close()
            self._link = None
        if self._link is None:
            self._link = self._connect()
        return self._link

    def _connect(self) -> Link:
        deadline, waits = time.monotonic() + self._connect_s, delays()
        reasons: list[str] = []
        while True:
            try:
                return Link(self._address, max(deadline - time.monotonic(), 0.001), self._timeout_s, self._ping_s)
            except NotNow as error:
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
