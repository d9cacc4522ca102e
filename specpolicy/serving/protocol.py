"""What client and server say to each other: msgpack maps with numpy arrays, as openpi's client writes them.

On connection the server sends its metadata. Then each request gets one reply, in order. A request is

* an observation by itself, ``{name: array, ..}``, as openpi's client sends it; errors come back as text frames, which
  that client raises; or
* ``{"__request__": "infer", "id": 7, "observation": {name: array, ..}}``, ``"observe"`` (remember the observation
  without sampling) or ``"reset"`` (forget the observations; ``"seed"``, and ``"repeat"`` if it is not 0, restart the
  random stream as that episode's). The reply has the same id, and errors come back as
  ``{"id": 7, "error": {"kind": "refused" | "failed", "message": ..}}``. ``"infer"`` may have a ``"prefix"``: the
  actions that play from the present step on until the reply is there, ``(d, action_dim)``, which a policy that was
  trained for delays continues. The reply's actions then begin with them, and are so many more.
"""

from __future__ import annotations

import math
import re
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from specpolicy.policies.observations import ObservationSpec


class ServingError(RuntimeError):
    """Anything that client and server raise."""


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


_NUMERIC = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_TEXT = re.compile(r"[<>|=]?[SU][0-9]{1,6}")  # openpi sends arrays of text, too
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds on what a message may consist of; a message beyond them is refused before any object is made of it.

    Attributes:
        objects: most values in a message, those inside maps and lists included.
        depth: deepest nesting of maps and lists.
    """

    objects: int = 16384
    depth: int = 16

    @classmethod
    def of(cls, spec: ObservationSpec) -> DecodeLimits:
        """Bound a message by what an observation of a policy can need.

        Args:
            spec: of the policy.

        Returns:
            Room for every vector as lists of numbers, for images as arrays, and for as much again plus a thousand
            values that the policy does not read.
        """
        numbers = sum(dim + 1 for name, dim in spec.keys.items() if name not in spec.images)
        return cls(objects=1024 + 2 * (spec.horizon * numbers + 32 * len(spec.keys)))


@dataclass(frozen=True)
class Unreadable:
    """A value that came and cannot be used, e.g. an array of objects; harmless where nobody needs it.

    Attributes:
        reason: what is wrong with it.
    """

    reason: str


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxdict, _repr.maxlist, _repr.maxstring, _repr.maxother = 2, 8, 12, 80, 80


def brief(value: Any, length: int = 80) -> str:
    """Write a value that came over the wire for a message, however large or deep it is.

    Args:
        value: anything.
        length: most characters.

    Returns:
        Its beginning.
    """
    if isinstance(value, np.ndarray):
        return f"an array of type {value.dtype} and shape {value.shape}"[:length]
    return (value.reason if isinstance(value, Unreadable) else _repr.repr(value))[:length]


def pack(message: Mapping[str, Any]) -> bytes:
    """Write a message.

    Args:
        message: maps, lists, text, bytes, numbers, None, and arrays of numbers or text.

    Returns:
        A frame.

    Raises:
        FrameError: it holds something else.
    """
    try:
        return msgpack.packb(message, default=_describe)
    except FrameError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise FrameError(f"the message cannot be sent: {error}") from error


def unpack(frame: bytes, limits: DecodeLimits = DecodeLimits()) -> Any:
    """Read what :func:`pack`, or openpi's packer, wrote.

    Args:
        frame: one message.
        limits: on its number of values and its nesting.

    Returns:
        The message; arrays are read-only. A part that cannot be read is :class:`Unreadable`.

    Raises:
        FrameError: not one complete msgpack value, or beyond the limits.
    """
    _check_size(frame, limits)
    try:
        return msgpack.unpackb(
            frame, object_hook=_restore, ext_hook=_extension, strict_map_key=False, max_array_len=limits.objects
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise FrameError(f"not a msgpack message of this protocol: {reason[:200]}") from error


def _headers() -> list[tuple[int, int, str]]:
    """For each first byte of a msgpack value: bytes after it, values inside it, and the format of a length field."""
    table = [(0, 0, "")] * 0x80  # small integers
    table += [(0, 2 * size, "") for size in range(16)] + [(0, size, "") for size in range(16)]  # small maps and lists
    table += [(size, 0, "") for size in range(32)]  # short text
    table += [(0, 0, "")] * 4  # None, unused, False, True
    table += [(0, 0, form) for form in (">B", ">H", ">I")]  # bytes
    table += [(1, 0, form) for form in (">B", ">H", ">I")]  # extensions: a type before the data
    table += [(size, 0, "") for size in (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)]  # floats and integers
    table += [(1 + size, 0, "") for size in (1, 2, 4, 8, 16)]  # extensions of fixed size
    table += [(0, 0, form) for form in (">B", ">H", ">I")]  # text
    table += [(0, 1, form) for form in (">H", ">I")] + [(0, 2, form) for form in (">H", ">I")]  # lists, maps
    return table + [(0, 0, "")] * 0x20  # small negative integers


_HEADERS = _headers()


def _check_size(frame: bytes, limits: DecodeLimits) -> None:
    """Walk over the headers of a message, at most ``limits.objects`` of them, and refuse what exceeds the limits.

    msgpack's own limits are per list and map: a megabyte of empty maps in lists stays below them, and takes the event
    loop a third of a second to decode.
    """
    at, objects, pending, todo = 0, 0, 1, [1]  # todo: values still to come at each level; pending: their sum
    try:
        while todo:
            if todo[-1] == 0:
                todo.pop()
                continue
            todo[-1] -= 1
            objects, pending = objects + 1, pending - 1
            skip, inside, form = _HEADERS[frame[at]]
            at += 1
            if form:
                (length,) = struct.unpack_from(form, frame, at)
                at += struct.calcsize(form)
                skip, inside = (skip, inside * length) if inside else (skip + length, 0)
            at += skip
            if inside:
                todo.append(inside)
                pending += inside
            if objects + pending > limits.objects:
                raise FrameError(
                    f"the message has more than {limits.objects} values; send vectors and images as arrays, and leave "
                    "out what the policy does not need"
                )
            if len(todo) > limits.depth + 1:
                raise FrameError(f"the message is nested more than {limits.depth} deep; send flat maps of arrays")
    except (IndexError, struct.error):
        raise FrameError("not a msgpack message of this protocol: it is incomplete") from None


def _describe(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise FrameError(f"a {type(value).__name__} cannot be sent; send numpy arrays, numbers, text, lists and dicts")
    if not (_NUMERIC.fullmatch(value.dtype.str) or _TEXT.fullmatch(value.dtype.str)):
        raise FrameError(f"an array of dtype {value.dtype} cannot be sent; booleans, integers, floats and text can")
    if isinstance(value, np.ndarray):
        if value.ndim > _MAX_DIMENSIONS:
            raise FrameError(f"an array of {value.ndim} dimensions cannot be sent; at most {_MAX_DIMENSIONS}")
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _restore(found: dict[Any, Any]) -> Any:
    try:
        if b"__ndarray__" in found:
            return _array(found)
        if b"__npgeneric__" in found:
            return _number(found)
    except (ValueError, TypeError, OverflowError) as error:
        return Unreadable(str(error))
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
        raise FrameError(f"an array's shape must be a list of at most {_MAX_DIMENSIONS} lengths, not {brief(shape)}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise FrameError(f"an array of shape {shape} and dtype {dtype} does not have {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _number(found: dict[Any, Any]) -> Any:
    dtype, data = _dtype(found), found.get(b"data")
    if not isinstance(data, str | bytes if dtype.kind in "SU" else bool | int | float):
        raise FrameError(f"a number's data must be a number, not {type(data).__name__}")
    return dtype.type(data)


def _dtype(found: dict[Any, Any]) -> np.dtype[Any]:
    name = found.get(b"dtype")
    if not isinstance(name, str) or not (_NUMERIC.fullmatch(name) or _TEXT.fullmatch(name)):
        raise FrameError(
            f"an array's dtype must be a boolean, integer or float such as '<f4', not {brief(name)}; "
            "objects are never unpickled"
        )
    return np.dtype(name)


def _extension(code: int, data: bytes) -> Any:
    return Unreadable(f"msgpack extension type {code} is not part of this protocol")


PROTOCOL = 1
ENVELOPE = "__request__"
KINDS = ("infer", "observe", "reset")
_FIELDS = {
    "infer": {ENVELOPE, "id", "observation", "prefix"},
    "observe": {ENVELOPE, "id", "observation"},
    "reset": {ENVELOPE, "id", "seed", "repeat"},
}


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        kind: one of :data:`KINDS`.
        observation: named values, unchecked; empty for a reset.
        seed: for a reset: of the random stream, 0 to 2⁶³ − 1, or None to let the stream go on.
        repeat: for a reset with a seed: number of the repeat from this seed.
        id: repeated in the reply; None if the client gave none.
        enveloped: whether errors can be answered with a map; a bare observation's are answered with text.
        prefix: actions under way, unchecked; None if there are none.
    """

    kind: str
    observation: Mapping[Any, Any]
    seed: int | None = None
    repeat: int = 0
    id: int | None = None
    enveloped: bool = True
    prefix: Any = None


class BadRequest(RequestRefused):
    """A request that cannot be read, with what is known of how to answer it."""

    def __init__(self, message: str, id: int | None = None, enveloped: bool = False) -> None:
        super().__init__(message)
        self.id, self.enveloped = id, enveloped


def parse_request(frame: bytes | str, limits: DecodeLimits = DecodeLimits()) -> Request:
    """Read a request.

    Args:
        frame: as it came.
        limits: on its number of values and its nesting.

    Returns:
        The request; its observation is not checked.

    Raises:
        BadRequest: it is not of one of the forms above; the message says what was expected.
    """
    if isinstance(frame, str):
        raise BadRequest("a text frame came; requests are binary frames with a msgpack map")
    try:
        message = unpack(frame, limits)
    except FrameError as error:
        raise BadRequest(str(error)) from error
    if not isinstance(message, dict):
        raise BadRequest(f"the request is a {type(message).__name__}; expected a map of names to arrays")
    if ENVELOPE not in message:
        return Request("infer", _named(message, None, False), enveloped=False)
    kind, id = message[ENVELOPE], message.get("id")
    if id is not None and (type(id) is not int or id < 0):
        raise BadRequest(f"id={brief(id)}; expected a number from 0 on", enveloped=True)
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadRequest(f"{ENVELOPE}={brief(kind)}; known: {', '.join(KINDS)}", id, True)
    if unknown := [name for name in message if name not in _FIELDS[kind]]:
        raise BadRequest(f"unknown fields {brief(unknown, 200)}; {kind!r} has {sorted(_FIELDS[kind])}", id, True)
    if kind == "reset":
        seed, repeat = message.get("seed"), message.get("repeat", 0)
        for name, value in (("seed", 0 if seed is None else seed), ("repeat", repeat)):
            if type(value) is not int or not 0 <= value < 2**63:
                raise BadRequest(f"{name}={brief(value)}; expected a whole number from 0 to 2**63 - 1", id, True)
        if seed is None and repeat:
            raise BadRequest(f"repeat={repeat} without a seed; give both, or neither", id, True)
        return Request(kind, {}, seed, repeat, id)
    return Request(kind, _named(message.get("observation"), id, True), id=id, prefix=message.get("prefix"))


def _named(observation: Any, id: int | None, enveloped: bool) -> Mapping[Any, Any]:
    if not isinstance(observation, dict):
        raise BadRequest(f"the observation is {brief(observation)}; expected a map of names to arrays", id, enveloped)
    return observation


def success(request: Request, **fields: Any) -> bytes:
    """Write the reply to a request that was carried out.

    Args:
        request: repeated is its ``id``.
        fields: of the reply.

    Returns:
        A frame.
    """
    return pack(fields if request.id is None else {"id": request.id, **fields})


def failure(kind: str, message: str, id: int | None, enveloped: bool) -> bytes | str:
    """Write the reply to a request that was not carried out.

    Args:
        kind: ``"refused"`` for the client's mistakes, else ``"failed"``.
        message: for the client.
        id: of the request, if it had one.
        enveloped: whether the client reads maps; openpi's reads text.

    Returns:
        A binary frame, or a text frame with the message alone.
    """
    if not enveloped:
        return message
    error = {"kind": kind, "message": message}
    return pack({"error": error} if id is None else {"id": id, "error": error})
