"""What can go wrong at a tick, and what is done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np


class Fault(StrEnum):
    """What a guard objects to."""

    NON_FINITE = "non_finite"
    """NaN, infinity, or a number that the action's type cannot hold: in a chunk, which is then refused as a whole, or
    in the aggregate of several."""

    OUT_OF_RANGE = "out_of_range"
    """An action outside the environment's limits."""

    FAILURE = "failure"
    """A chunk could not be computed: the policy raised an exception or gave no usable actions, or the observation is
    none that it can be asked about."""

    STALE = "stale"
    """An action from an observation that is too old."""

    MISSED = "missed"
    """A tick for which there is no action, because the next chunk is late."""

    LATE = "late"
    """A tick that is sent too long after it was due."""

    SENSOR = "sensor"
    """The environment says, in ``info["problem"]``, why its observation must not be used: a sensor is lost or stale."""


class Response(StrEnum):
    """What is done about a fault."""

    SEND = "send"
    """The action is sent all the same, and counted."""

    CLIP = "clip"
    """The nearest action within the limits."""

    HOLD = "hold"
    """Standstill at once: deltas zero, absolute entries repeated."""

    BRAKE = "brake"
    """Deltas go down to zero over some ticks, absolute entries are repeated."""

    LAST_SAFE = "last_safe"
    """The last chunk without a fault is played on to its end, then the robot holds."""

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
    Fault.SENSOR: _STILL | {Response.SEND},
}
"""Responses that make sense for each fault; nothing that has not been checked can be sent."""


@dataclass(frozen=True)
class Guards:
    """The response to each fault, and the thresholds.

    Attributes:
        non_finite, out_of_range, failure, stale, missed, late, sensor: a :class:`Response` each, or its name.
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
    sensor: Response = Response.HOLD
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
            if field.name.endswith("_s") and value is not None and not 0 < value < float("inf"):
                raise ValueError(f"guards: {field.name}={value}; expected a positive number of seconds, or null")
        for name in ("brake_ticks", "give_up_after"):
            value = getattr(self, name)
            if value is None and name == "give_up_after":
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"guards: {name}={value!r}; expected a whole number, at least 1")
        if not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"guards: tolerance={self.tolerance}; expected a finite number, not negative")

    def response(self, fault: Fault) -> Response:
        """Return the response to ``fault``."""
        response: Response = getattr(self, fault.value)
        return response
