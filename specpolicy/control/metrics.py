"""What a controller's episodes say about it: delays, gaps, jumps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specpolicy.control.guards import Fault
from specpolicy.control.inference import InferenceKind
from specpolicy.control.trace import EpisodeTrace, InferenceRecord, StepRecord


@dataclass(frozen=True)
class Quantiles:
    """Of ``n`` values: median, 95th and 99th percentile, and the largest."""

    p50: float
    p95: float
    p99: float
    max: float
    n: int


@dataclass(frozen=True)
class ControlMetrics:
    """Of all episodes of a controller together; None where there is nothing to measure.

    Attributes:
        episodes, ticks, chunks: counts; a chunk counts once it is played.
        reaction_ms: from an observation to the first action that was computed from it, chunk by chunk.
        age_ms: from the observation to the sending of an action, action by action.
        inference_ms: duration of whole inferences on the loop's clock; finish_ms: of those that finish a draft.
        jitter_ms: how long after its due time an action was sent.
        idle: share of ticks without a policy's action: the robot waited, kept its pose or braked.
        stale: share of the policy's actions that were older than any is in lockstep without latency, which is
            (n_action_steps − 1) ticks.
        missed: share of the clock's ticks without an action, late or skipped, for which the executor had planned one.
        border_velocity_jump, inner_velocity_jump: mean change of the commanded velocity from tick to tick where the
            chunk changes, and inside of chunks; see :func:`seams`.
        border_jerk, inner_jerk: mean jerk of the commanded motion across changes of the chunk, and inside of chunks.
        passes: mean network evaluations (NFE) of whole inferences; finish_passes: of those that finish a draft.
        rows, finish_rows: mean states that the network evaluated in them.
        acceptance: mean share of accepted drafted steps.
        faults: how often each fault occurred.
        stopped: episodes that a guard ended.
        outran: share of the chunks that came later than they were made for, by a delay-conditioned policy or under a
            predicted observation; None where there are none.
        predicted: mean ticks by which observations were predicted ahead; None where none were.
        limited: share of the commands of the policy's actions that limits of motion changed; None without limits.
    """

    episodes: int
    ticks: int
    chunks: int
    reaction_ms: Quantiles | None
    age_ms: Quantiles | None
    inference_ms: Quantiles | None
    finish_ms: Quantiles | None
    jitter_ms: Quantiles | None
    idle: float | None
    stale: float | None
    missed: float | None
    border_velocity_jump: float | None
    inner_velocity_jump: float | None
    border_jerk: float | None
    inner_jerk: float | None
    passes: float | None
    finish_passes: float | None
    rows: float | None
    finish_rows: float | None
    acceptance: float | None
    faults: dict[str, int]
    stopped: int
    outran: float | None = None
    predicted: float | None = None
    limited: float | None = None


def measure(traces: Iterable[EpisodeTrace]) -> ControlMetrics:
    """Measure the metrics of a controller.

    Args:
        traces: of its episodes; they may come one by one, from a disk.

    Returns:
        Of all episodes together.
    """
    reaction, ages, jitter = [list[float]() for _ in range(3)]
    found = Seams([], [], [], [])
    inferences: list[InferenceRecord] = []
    faults: Counter[str] = Counter()
    episodes = ticks = skipped = idle = stale = missed = stopped = tracked = limited = 0
    for trace in traces:
        episodes += 1
        ticks += len(trace.ticks)
        stopped += trace.stopped is not None
        tracked += trace.tracked
        limited += trace.limited
        faults.update(trace.faults)
        inferences += trace.inferences
        skipped += trace.skipped
        missed += trace.skipped + sum(row.fault in (Fault.MISSED, Fault.LATE) for row in trace.ticks)
        fresh_s = (trace.n_action_steps - 1) / trace.rate_hz + 1e-9
        seen: set[int] = set()
        for values, more in zip(found, seams(trace), strict=True):
            values.extend(more)
        for row in trace.ticks:
            jitter.append(1e3 * (row.sent_s - row.due_s))
            if row.inference is None or row.age_s is None:
                idle += 1
                continue
            ages.append(1e3 * row.age_s)
            stale += row.age_s > fresh_s
            if row.inference not in seen:
                seen.add(row.inference)
                reaction.append(1e3 * row.age_s)
    by_kind = {kind: [inference for inference in inferences if inference.kind is kind] for kind in InferenceKind}
    return ControlMetrics(
        episodes=episodes,
        ticks=ticks,
        chunks=len(reaction),
        reaction_ms=_quantiles(reaction),
        age_ms=_quantiles(ages),
        inference_ms=_quantiles(_durations_ms(by_kind[InferenceKind.WHOLE])),
        finish_ms=_quantiles(_durations_ms(by_kind[InferenceKind.FINISH])),
        jitter_ms=_quantiles(jitter),
        idle=idle / ticks if ticks else None,
        stale=stale / len(ages) if ages else None,
        missed=missed / (ticks + skipped) if ticks else None,
        border_velocity_jump=_mean(found.border_velocity_jump),
        inner_velocity_jump=_mean(found.inner_velocity_jump),
        border_jerk=_mean(found.border_jerk),
        inner_jerk=_mean(found.inner_jerk),
        passes=_mean_of(by_kind[InferenceKind.WHOLE], "passes"),
        finish_passes=_mean_of(by_kind[InferenceKind.FINISH], "passes"),
        rows=_mean_of(by_kind[InferenceKind.WHOLE], "evaluations"),
        finish_rows=_mean_of(by_kind[InferenceKind.FINISH], "evaluations"),
        acceptance=_mean_of(inferences, "acceptance"),
        faults=dict(faults),
        stopped=stopped,
        outran=_mean([each.outran for each in inferences if each.expected_delay and each.handover is not None]),
        predicted=_mean_of(inferences, "predicted"),
        limited=limited / tracked if tracked else None,
    )


class Seams(NamedTuple):
    """How smoothly actions were commanded where chunks change and inside of chunks, a value for each place.

    Attributes:
        border_velocity_jump, inner_velocity_jump: L2 norm of the change of velocity, action units per second.
        border_jerk, inner_jerk: L2 norm of the third derivative of the position, action units per second³.
    """

    border_velocity_jump: list[float]
    inner_velocity_jump: list[float]
    border_jerk: list[float]
    inner_jerk: list[float]


def seams(trace: EpisodeTrace) -> Seams:
    """Measure velocity jumps and jerk of the actions that were sent, at changes of the chunk and inside of chunks.

    The command's derivatives are finite differences at the rate f of the loop. An absolute entry is a position:
    velocity v_t = f (a_t − a_{t−1}). A delta entry is what the position moves by in a tick: v_t = f a_t. Where a task
    has delta entries, they alone are counted: absolute ones beside them are grippers, in other units. The velocity jump
    is |v_t − v_{t−1}|; it belongs to a border if tick t is the first of another chunk than tick t − 1, and to the
    inside if all ticks that it is computed from are of one chunk. The jerk is f² |v_t − 2 v_{t−1} + v_{t−2}|, after
    Flash & Hogan 1985 (its square integrated is their measure of smoothness); it belongs to a border if it is computed
    from more than one chunk. Jumps at the tick after a border belong to neither. Ticks that were skipped, or whose
    action is not the policy's, interrupt the sequence.

    Args:
        trace: of an episode.

    Returns:
        All values.
    """
    found = Seams([], [], [], [])
    for jump in velocity_jumps(trace):
        if jump.border is not None:
            (found.border_velocity_jump if jump.border else found.inner_velocity_jump).append(jump.size)
    for _, size, windows in _differences(trace, order=2):
        crosses = windows.any(axis=1)
        found.border_jerk.extend(size[crosses].tolist())
        found.inner_jerk.extend(size[~crosses].tolist())
    return found


class VelocityJump(NamedTuple):
    """A change of the commanded velocity.

    Attributes:
        row: the tick from which on the velocity is another one.
        size: L2 norm, action units per second.
        border: whether the tick is the first of a chunk; None just after it, where the velocity before the jump was
            that across the border.
    """

    row: StepRecord
    size: float
    border: bool | None


def velocity_jumps(trace: EpisodeTrace) -> Iterator[VelocityJump]:
    """Go through the changes of velocity of an episode; see :func:`seams`.

    Args:
        trace: of the episode.

    Yields:
        One for each tick whose velocity and the one before are known.
    """
    for rows, sizes, windows in _differences(trace, order=1):
        for row, size, window in zip(rows, sizes.tolist(), windows, strict=True):
            yield VelocityJump(row, size, True if window[-1] else None if window.any() else False)


def _differences(
    trace: EpisodeTrace, order: int
) -> Iterator[tuple[list[StepRecord], NDArray[np.float64], NDArray[np.bool_]]]:
    """Derivatives of the velocity, stretch by stretch.

    Yields:
        The tick of each value; its L2 norm, as a jump (order 1) or a jerk (order 2); and whether the chunk changes from
        one to the next of the ticks that it is computed from, the latest change last.
    """
    f, dims = trace.rate_hz, list(trace.delta_dims)
    for rows in _runs(trace):
        actions = np.array([row.action for row in rows], dtype=np.float64)
        velocity = f * (actions[:, dims] if dims else np.diff(actions, axis=0))
        ticks = order + (0 if dims else 1)  # before its own that a value is computed from
        if len(rows) <= ticks:
            continue
        size = (1.0 if order == 1 else f**2) * np.linalg.norm(np.diff(velocity, order, axis=0), axis=1)
        changed = np.diff([row.inference for row in rows]) != 0
        yield rows[ticks:], size, np.lib.stride_tricks.sliding_window_view(changed, ticks)


def _runs(trace: EpisodeTrace) -> Iterator[list[StepRecord]]:
    """Stretches of consecutive ticks with the policy's actions."""
    run: list[StepRecord] = []
    for row in trace.ticks:
        if run and (row.inference is None or row.tick != run[-1].tick + 1):
            yield run
            run = []
        if row.inference is not None:
            run.append(row)
    if run:
        yield run


def _durations_ms(inferences: Sequence[InferenceRecord]) -> list[float]:
    return [1e3 * (inference.ended_s - inference.begun_s) for inference in inferences if inference.ended_s is not None]


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    if not values:
        return None
    p50, p95, p99 = (float(each) for each in np.quantile(values, (0.5, 0.95, 0.99)))
    return Quantiles(p50, p95, p99, float(max(values)), len(values))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _mean_of(inferences: Sequence[InferenceRecord], name: str) -> float | None:
    """Mean of a field over the inferences that know it."""
    return _mean([value for value in (getattr(each, name) for each in inferences) if value is not None])
