"""What ``/diagnostics`` says: how the loop is doing, and how old each topic is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from specpolicy.control.trace import EpisodeTrace
from specpolicy.ros.environment import SensorReader

OK, WARN, ERROR = 0, 1, 2
"""Levels, as in ``diagnostic_msgs/DiagnosticStatus``."""

_RECENT = 200  # ticks that percentiles are about


@dataclass(frozen=True)
class Finding:
    """One entry of the diagnostics.

    Attributes:
        level: :data:`OK`, :data:`WARN` or :data:`ERROR`.
        name: what it is about.
        message: one line.
        values: details, as text.
    """

    level: int
    name: str
    message: str
    values: dict[str, str] = field(default_factory=dict)


class LatestTrace:
    """A view that keeps the trace at hand, and its length bounded.

    Args:
        ticks: how many to keep; None for all.

    Attributes:
        trace: of the present or the last activation.
        count: ticks played in it.
    """

    def __init__(self, ticks: int | None) -> None:
        self._ticks = ticks
        self.trace: EpisodeTrace | None = None
        self.count = 0

    def begin(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`specpolicy.control.viewers.View`."""
        self.trace, self.count = trace, 0

    def tick(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """See :class:`specpolicy.control.viewers.View`."""
        self.count += 1
        if self._ticks is not None and len(trace.ticks) > 2 * self._ticks:
            del trace.ticks[: -self._ticks]
            del trace.inferences[: -self._ticks]

    def end(self, trace: EpisodeTrace) -> None:
        """See :class:`specpolicy.control.viewers.View`."""


@dataclass(frozen=True)
class NodeState:
    """How a node is doing.

    Attributes:
        name: of the node.
        active: whether its loop runs.
        failure: why it was not configured, or why its loop ended.
        description: of the policy.
        latest: the present or the last activation.
        jumps: how often the loop's clock went back.
        reader: of the sensors; None before there are any.
    """

    name: str
    active: bool
    failure: str | None
    description: dict[str, str]
    latest: LatestTrace
    jumps: int
    reader: SensorReader | None

    def findings(self) -> list[Finding]:
        """Return one finding about the loop, and one about each topic of the sensors."""
        found = [self._loop()]
        for state in [] if self.reader is None else self.reader.states.values():
            assert self.reader is not None
            problem, age = self.reader.problem_of(state), self.reader.age_s(state)
            values = {
                "type": state.type,
                "observations": ", ".join(state.parts),
                "age_ms": "" if age is None else f"{1e3 * age:.1f}",
                "allowed_ms": f"{1e3 * state.max_age_s:g}",
                "received": str(state.received),
                "rejected": str(state.rejected),
            }
            level = OK if problem is None else ERROR if self.active else WARN
            found.append(Finding(level, f"{self.name}: {state.topic}", problem or "fresh", values))
        return found

    def _loop(self) -> Finding:
        trace = self.latest.trace
        values = {**self.description, "ticks": str(self.latest.count), "clock_jumps": str(self.jumps)}
        level, message = (OK, "active") if self.active else (WARN, "inactive")
        if trace is not None and trace.ticks:
            rows = trace.ticks[-_RECENT:]
            faults = {fault: total for fault, total in trace.faults.items() if total}
            ended = [each for each in trace.inferences[-_RECENT:] if each.ended_s is not None]
            seconds = [each.ended_s - each.begun_s for each in ended if each.ended_s is not None]
            nfe = [each.passes for each in ended if each.passes is not None]
            acceptance = [each.acceptance for each in ended if each.acceptance is not None]
            late = [row.sent_s - row.due_s for row in rows]
            values |= {f"fault_{fault}": str(total) for fault, total in faults.items()}
            values["late_ms_99"] = f"{1e3 * float(np.percentile(late, 99)):.2f}"
            if seconds:
                values["inference_ms_50"] = f"{1e3 * float(np.median(seconds)):.1f}"
                values["inference_ms_99"] = f"{1e3 * float(np.percentile(seconds, 99)):.1f}"
            if nfe:
                values["network_evaluations_mean"] = f"{np.mean(nfe):.1f}"
            if acceptance:
                values["acceptance_mean"] = f"{np.mean(acceptance):.3f}"
            if self.active and rows[-1].fault is not None:
                level, message = ERROR, f"{rows[-1].fault}: {trace.reason or rows[-1].response}"
        if self.failure is not None:
            level, message = ERROR, self.failure
        return Finding(level, self.name, message, values)
