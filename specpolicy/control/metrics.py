"""What a controller's episodes say about it: delays, gaps, jumps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from specpolicy.control.guards import Fault
from specpolicy.control.inference import InferenceKind
from specpolicy.control.trace import EpisodeTrace, InferenceRecord


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
        border_jump, inner_jump: mean L2 distance of consecutive actions of the policy in the environment's units, where
            the chunk changes and where it does not.
        passes: mean network evaluations (NFE) of whole inferences; finish_passes: of those that finish a draft.
        acceptance: mean share of accepted drafted steps.
        faults: how often each fault occurred.
        stopped: episodes that a guard ended.
        outran: share of the chunks of a delay-conditioned policy that came later than the policy had been told.
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
    border_jump: float | None
    inner_jump: float | None
    passes: float | None
    finish_passes: float | None
    acceptance: float | None
    faults: dict[str, int]
    stopped: int
    outran: float | None = None


def measure(traces: Iterable[EpisodeTrace]) -> ControlMetrics:
    """Measure the metrics of a controller.

    Args:
        traces: of its episodes; they may come one by one, from a disk.

    Returns:
        Of all episodes together.
    """
    reaction, ages, jitter, border, inner = [list[float]() for _ in range(5)]
    inferences: list[InferenceRecord] = []
    faults: Counter[str] = Counter()
    episodes = ticks = skipped = idle = stale = missed = stopped = 0
    for trace in traces:
        episodes += 1
        ticks += len(trace.ticks)
        stopped += trace.stopped is not None
        faults.update(trace.faults)
        inferences += trace.inferences
        skipped += trace.skipped
        missed += trace.skipped + sum(row.fault in (Fault.MISSED, Fault.LATE) for row in trace.ticks)
        fresh_s = (trace.n_action_steps - 1) / trace.rate_hz + 1e-9
        seen: set[int] = set()
        for before, row in zip([None, *trace.ticks], trace.ticks, strict=False):
            jitter.append(1e3 * (row.sent_s - row.due_s))
            if row.inference is None or row.age_s is None:
                idle += 1
                continue
            ages.append(1e3 * row.age_s)
            stale += row.age_s > fresh_s
            if row.inference not in seen:
                seen.add(row.inference)
                reaction.append(1e3 * row.age_s)
            if before is not None and before.inference is not None:
                jump = float(np.linalg.norm(np.subtract(row.action, before.action)))
                (inner if row.inference == before.inference else border).append(jump)
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
        border_jump=_mean(border),
        inner_jump=_mean(inner),
        passes=_mean([inference.passes for inference in by_kind[InferenceKind.WHOLE] if inference.passes is not None]),
        finish_passes=_mean(
            [inference.passes for inference in by_kind[InferenceKind.FINISH] if inference.passes is not None]
        ),
        acceptance=_mean([inference.acceptance for inference in inferences if inference.acceptance is not None]),
        faults=dict(faults),
        stopped=stopped,
        outran=_mean([each.outran for each in inferences if each.prefix is not None and each.handover is not None]),
    )


def _durations_ms(inferences: Sequence[InferenceRecord]) -> list[float]:
    return [1e3 * (inference.ended_s - inference.begun_s) for inference in inferences if inference.ended_s is not None]


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    if not values:
        return None
    p50, p95, p99 = (float(each) for each in np.quantile(values, (0.5, 0.95, 0.99)))
    return Quantiles(p50, p95, p99, float(max(values)), len(values))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
