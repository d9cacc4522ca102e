"""What client and server say to each other, as maps that :mod:`~specpolicy.serving.protocol` carries.

On connection the server sends its metadata. Then each request gets one reply, in order. A request is

* an observation by itself, ``{name: array, ..}``, as openpi's client sends it; errors come back as text frames, which
  that client raises; or
* ``{"__request__": "infer", "id": 7, "observation": {name: array, ..}}``, ``"observe"`` (remember the observation
  without sampling) or ``"reset"`` (forget the observations; ``"seed"`` begins the random stream anew). The reply has
  the same id, and errors come back as ``{"id": 7, "error": {"kind": "refused" | "failed", "message": ..}}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray


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


_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MAX_DIMENSIONS = 8
# A list's length is believed before its elements have come, so that nested lists of claimed length take memory that was
# never sent. Long vectors belong into arrays.
_MAX_LIST = 4096
_MAX_MAP = 1024


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes.

    Raises:
        FrameError: it holds something else than maps, lists, text, bytes, numbers, None and numeric arrays.
    """
    try:
        return msgpack.packb(message, default=_describe)
    except FrameError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise FrameError(f"the message cannot be sent: {error}") from error


def unpack(frame: bytes) -> Any:
    """What :func:`pack`, or openpi's packer, was given; arrays are read-only views of ``frame``.

    Raises:
        FrameError: not one complete msgpack value, or an array that is not what it says.
    """
    try:
        return msgpack.unpackb(
            frame, object_hook=_restore, ext_hook=_refuse_extension, max_array_len=_MAX_LIST, max_map_len=_MAX_MAP
        )
    except FrameError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise FrameError(f"not a msgpack message of this protocol: {reason[:200]}") from error


def _describe(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise FrameError(f"a {type(value).__name__} cannot be sent; send numpy arrays, numbers, text, lists and dicts")
    if not _DTYPE.fullmatch(value.dtype.str):
        raise FrameError(f"an array of dtype {value.dtype} cannot be sent; booleans, integers and floats can")
    if isinstance(value, np.ndarray):
        if value.ndim > _MAX_DIMENSIONS:
            raise FrameError(f"an array of {value.ndim} dimensions cannot be sent; at most {_MAX_DIMENSIONS}")
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _restore(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return _array(found)
    if b"__npgeneric__" in found:
        return _number(found)
    return found


def _array(found: dict[Any, Any]) -> NDArray[Any]:
    dtype, data, shape = _dtype(found), found.get(b"data"), found.get(b"shape")
    if not isinstance(data, bytes):
        raise FrameError(f"an array's data must be bytes, not {type(data).__name__}")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(length) is int and 0 <= length < 2**31 for length in shape)
    ):
        raise FrameError(f"an array's shape must be a list of at most {_MAX_DIMENSIONS} lengths, not {shape!r:.80}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise FrameError(f"an array of shape {shape} and dtype {dtype} does not have {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _number(found: dict[Any, Any]) -> Any:
    dtype, data = _dtype(found), found.get(b"data")
    if not isinstance(data, bool | int | float):
        raise FrameError(f"a number's data must be a number, not {type(data).__name__}")
    return dtype.type(data)


def _dtype(found: dict[Any, Any]) -> np.dtype[Any]:
    name = found.get(b"dtype")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise FrameError(
            f"an array's dtype must be a boolean, integer or float such as '<f4', not {name!r:.80}; "
            "objects are never unpickled"
        )
    return np.dtype(name)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise FrameError(f"msgpack extension type {code} is not part of this protocol")


PROTOCOL = 1
ENVELOPE = "__request__"
KINDS = ("infer", "observe", "reset")
_FIELDS = {
    "infer": {ENVELOPE, "id", "observation"},
    "observe": {ENVELOPE, "id", "observation"},
    "reset": {ENVELOPE, "id", "seed"},
}


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        kind: one of :data:`KINDS`.
        observation: named values, unchecked; empty for a reset.
        seed: for a reset: of the random stream, 0 to 2⁶³ − 1, or None to let the stream go on.
        id: repeated in the reply; None if the client gave none.
        enveloped: whether errors can be answered with a map; a bare observation's are answered with text.
    """

    kind: str
    observation: Mapping[str, Any]
    seed: int | None = None
    id: int | None = None
    enveloped: bool = True


class BadRequest(RequestRefused):
    """A request that cannot be read, with what is known of how to answer it."""

    def __init__(self, message: str, id: int | None = None, enveloped: bool = False) -> None:
        super().__init__(message)
        self.id, self.enveloped = id, enveloped


def parse_request(frame: bytes | str) -> Request:
    """Read a request.

    Raises:
        BadRequest: it is not of one of the forms above; the message says what was expected.
    """
    if isinstance(frame, str):
        raise BadRequest("a text frame came; requests are binary frames with a msgpack map")
    try:
        message = unpack(frame)
    except FrameError as error:
        raise BadRequest(str(error)) from error
    if not isinstance(message, dict):
        raise BadRequest(f"the request is a {type(message).__name__}; expected a map of names to arrays")
    if ENVELOPE not in message:
        return Request("infer", _named(message, None, False), enveloped=False)
    kind, id = message[ENVELOPE], message.get("id")
    if id is not None and (type(id) is not int or id < 0):
        raise BadRequest(f"id={id!r:.80}; expected a number from 0 on", enveloped=True)
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadRequest(f"{ENVELOPE}={kind!r:.80}; known: {', '.join(KINDS)}", id, True)
    if unknown := [name for name in message if name not in _FIELDS[kind]]:
        raise BadRequest(f"unknown fields {unknown!r:.200}; {kind!r} has {sorted(_FIELDS[kind])}", id, True)
    if kind == "reset":
        seed = message.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise BadRequest(f"seed={seed!r:.80}; expected a whole number from 0 to 2**63 - 1, or none", id, True)
        return Request(kind, {}, seed, id)
    return Request(kind, _named(message.get("observation"), id, True), id=id)


def _named(observation: Any, id: int | None, enveloped: bool) -> Mapping[str, Any]:
    if not isinstance(observation, dict) or not all(isinstance(name, str) for name in observation):
        raise BadRequest(f"the observation is {observation!r:.80}; expected a map of names to arrays", id, enveloped)
    return observation


def success(request: Request, **fields: Any) -> bytes:
    """The reply to a request that was carried out."""
    return pack(fields if request.id is None else {"id": request.id, **fields})


def failure(kind: str, message: str, id: int | None, enveloped: bool) -> bytes | str:
    """The reply to a request that was not: ``kind`` is ``"refused"`` for the client's mistakes, else ``"failed"``."""
    if not enveloped:
        return message
    error = {"kind": kind, "message": message}
    return pack({"error": error} if id is None else {"id": id, "error": error})
