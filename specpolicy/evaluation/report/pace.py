"""Whether a robot has to wait: how long a chunk lasts against how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

from ..summary import SummaryRow
from .results import TaskResults
from .words import milliseconds


@dataclass(frozen=True)
class Pace:
    """How fast the robot uses up actions.

    Attributes:
        control_hz: actions a second.
        actions: executed of each chunk.
    """

    control_hz: float
    actions: int

    @property
    def chunk_ms(self) -> float:
        """How long the actions of one chunk last, in milliseconds."""
        return 1e3 * self.actions / self.control_hz

    def __str__(self) -> str:
        return f"{self.actions} actions at {self.control_hz:g} Hz last {milliseconds(self.chunk_ms)} ms"

    def kept_by(self, row: SummaryRow) -> bool | None:
        """Whether 95 of 100 chunks are ready within the time that one lasts; None if that is not known."""
        slow = row.latency.p95 if row.latency else None
        return None if slow is None else slow.value <= self.chunk_ms


def pace_of(results: TaskResults, control_hz: float | None) -> Pace | None:
    """The pace of a task, None where the control rate or the length of a chunk is not known."""
    policy = results.manifest.configuration.get("policy")
    actions = policy.get("executed_actions") if isinstance(policy, dict) else None
    return Pace(control_hz, actions) if control_hz and isinstance(actions, int) and actions > 0 else None
