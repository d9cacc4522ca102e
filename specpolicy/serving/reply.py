"""What a robot gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ProtocolError


@dataclass(frozen=True)
class Timing:
    """Where the time of a request went, in milliseconds.

    Attributes:
        infer_ms: sampling, for the whole batch that the request was part of.
        queue_ms: waiting for the network to be free and for company.
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
        actions: shape ``(executed_actions, action_dim)``, the present step's first, in the environment's units.
        passes: network passes that the sample had to wait for, one after another.
        acceptance: share of drafted steps that were accepted, 0 to 1; None for samplers that draft nothing.
        batch: requests that shared these passes, this one included.
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
        """Read the server's message. Raises ``ProtocolError`` if something is missing in it."""
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
