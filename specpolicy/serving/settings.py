"""How a server listens, batches and protects itself."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from .errors import SettingsError


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server; the command line shows the same names.

    Attributes:
        host: address to listen on. Any but this machine's own loopback needs a token.
        port: 0 takes a free one.
        max_batch: most requests that share a network pass.
        max_wait_ms: longest that a request waits for others to share its passes while the network is free.
        max_message_bytes: larger requests close the connection (status 1009).
        max_connections: further ones are turned away (HTTP status 503).
        idle_s: a connection without a complete request for so long is closed.
        send_s: a client that does not take its reply for so long is dropped.
        handshake_s: time to open a connection.
        ping_s: how often to look whether a silent client is still there; without an answer for as long it is dropped.
        grace_s: on shutdown, how long to finish what has begun.
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
