"""What client and server say to each other, as maps that :mod:`~specpolicy.serving.wire` carries.

On connection the server sends its metadata. Then each request gets one reply, in order. A request is

* an observation by itself, ``{name: array, ..}``, as openpi's client sends it; errors come back as text frames, which
  that client raises; or
* ``{"__request__": "infer", "id": 7, "observation": {name: array, ..}}``, ``"observe"`` (remember the observation
  without sampling) or ``"reset"`` (forget the observations; ``"seed"`` begins the random stream anew). The reply has
  the same id, and errors come back as ``{"id": 7, "error": {"kind": "refused" | "failed", "message": ..}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import FrameError, RequestRefused
from .wire import pack, unpack

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
