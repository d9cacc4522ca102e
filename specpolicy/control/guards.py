"""Guards: what can go wrong in a control loop, and what is done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum


class Fault(StrEnum):
    """What a guard objects to."""

    NON_FINITE = "non_finite"
    """NaN or infinity: in a chunk, which is then refused as a whole, or in a blend of several."""

    OUT_OF_RANGE = "out_of_range"
    """An action outside the environment's limits."""

    FAILURE = "failure"
    """The computation of a chunk raised an exception, or gave actions of a wrong shape."""

    STALE = "stale"
    """An action from an observation that is too old."""

    MISSED = "missed"
    """A tick for which there is no action, because the next chunk is late."""

    LATE = "late"
    """A tick that is sent too long after it was due."""


class Response(StrEnum):
    """What is done instead."""

    SEND = "send"
    """The action is sent all the same, and counted."""

    CLIP = "clip"
    """The nearest action within the limits."""

    HOLD = "hold"
    """Standstill at once: rates zero, states kept."""

    BRAKE = "brake"
    """Rates go down to zero over some ticks, states are kept."""

    LAST_SAFE = "last_safe"
    """The last chunk that nothing was wrong with is played on to its end, then the robot holds."""

    STOP = "stop"
    """Hold, and end the episode."""


_STILL = frozenset({Response.HOLD, Response.BRAKE, Response.STOP})
POSSIBLE: Mapping[Fault, frozenset[Response]] = {
    Fault.NON_FINITE: _STILL | {Response.LAST_SAFE},
    Fault.OUT_OF_RANGE: _STILL | {Response.LAST_SAFE, Response.CLIP},
    Fault.FAILURE: _STILL | {Response.LAST_SAFE},
    Fault.STALE: _STILL | {Response.SEND},
    Fault.MISSED: _STILL,
    Fault.LATE: _STILL | {Response.SEND},
}
"""Responses that make sense for each fault; nothing that has not been checked can be sent."""


@dataclass(frozen=True)
class Guards:
    """The response to each fault, and the thresholds.

    Attributes:
        non_finite, out_of_range, failure, stale, missed, late: a :class:`Response` each, or its name.
        tolerance: how far outside the limits an action may lie and still count as inside.
        max_age_s: actions from observations older than this are stale; None: none is.
        deadline_s: a chunk that takes longer than this is late, also while its executor pauses for it; None: it is
            late when the robot has run out of actions.
        late_s: a tick sent so long after it was due is late; None: half a tick.
        brake_ticks: ticks in which a brake comes to rest, at least 1.
        give_up_after: stop after so many chunks in a row that failed or were refused; None: never.

    Raises:
        ValueError: an unknown response, one that makes no sense for its fault, or a threshold that is not positive.
    """

    non_finite: Response = Response.LAST_SAFE
    out_of_range: Response = Response.CLIP
    failure: Response = Response.LAST_SAFE
    stale: Response = Response.HOLD
    missed: Response = Response.HOLD
    late: Response = Response.SEND
    tolerance: float = 1e-6
    max_age_s: float | None = None
    deadline_s: float | None = None
    late_s: float | None = None
    brake_ticks: int = 4
    give_up_after: int | None = 20

    def __post_init__(self) -> None:
        for fault in Fault:
            asked, possible = getattr(self, fault.value), POSSIBLE[fault]
            if asked not in possible:
                known = ", ".join(sorted(possible))
                raise ValueError(f"guards: {fault.value}={asked!r}; possible responses are {known}")
            object.__setattr__(self, fault.value, Response(asked))  # a configuration gives its name
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s") and value is not None and not value > 0:
                raise ValueError(f"guards: {field.name}={value}; expected a positive number of seconds, or null")
        if self.brake_ticks < 1 or self.tolerance < 0 or (self.give_up_after is not None and self.give_up_after < 1):
            raise ValueError(
                f"guards: brake_ticks={self.brake_ticks} and give_up_after={self.give_up_after} must be at least 1, "
                f"tolerance={self.tolerance} not negative"
            )

    def response(self, fault: Fault) -> Response:
        """What to do about ``fault``."""
        response: Response = getattr(self, fault.value)
        return response
