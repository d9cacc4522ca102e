"""Messages as bytes: msgpack, with numpy arrays in openpi's form and nothing that could run.

An array travels as the map ``{b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [..]}``, a numpy number
as ``{b"__npgeneric__": true, b"data": number, b"dtype": "<f4"}``. Only booleans, integers and floating point have such
a form: object arrays, which would need pickle, structured ones and msgpack's extension types are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from .errors import FrameError

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
