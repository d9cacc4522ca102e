"""What can go wrong between a robot and a policy server, one class for each thing a robot would do about it."""

from __future__ import annotations


class ServingError(RuntimeError):
    """Anything this room raises."""


class FrameError(ServingError, ValueError):
    """A message cannot be written or read: not msgpack, or holds what may not travel (object arrays, for one)."""


class SettingsError(ServingError, ValueError):
    """The server cannot be run as it was asked to be."""


class RequestRefused(ServingError, ValueError):
    """The server understood that a request is wrong, and says what was expected; the connection stays."""


class RequestTooLarge(RequestRefused):
    """A request is larger than the server accepts."""


class ServerFailed(ServingError):
    """The server could not carry out a request that was in order; the connection stays."""


class Unauthorized(ServingError):
    """The server asks for a token, or for another one."""


class ServerUnavailable(ServingError, ConnectionError):
    """No connection within the time allowed, for all attempts."""


class ConnectionLost(ServingError, ConnectionError):
    """The connection broke while a request was under way; the next request connects again."""


class RequestTimeout(ServingError, TimeoutError):
    """No answer within the time allowed; the connection and its session stay."""


class ProtocolError(ServingError):
    """The other side speaks something else than this protocol."""
