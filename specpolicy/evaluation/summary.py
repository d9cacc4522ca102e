"""Summaries of results: one row for each sampler, or for each controller (executor, sampler and injected latency).

A plain evaluation is a controller in lockstep at zero latency: its rows have no ``loop``.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from specpolicy.config import is_sealed
from specpolicy.control.controller import ControllerConfig
from specpolicy.control.latency import Constant
from specpolicy.control.latency_log import CallLog, LatencyRun
from specpolicy.control.metrics import ControlMetrics, measure
from specpolicy.control.trace import EpisodeTrace, TraceError, read_trace
from specpolicy.evaluation.anytime import anytime_p_value, confidence_sequence
from specpolicy.evaluation.statistics import (
    Estimate,
    clustered_clopper_pearson,
    mean_interval,
    paired_difference,
    quantile_interval,
    ratio_of_medians,
    ratio_of_sums,
    sign_flip_test,
)
from specpolicy.evaluation.verdicts import MARGIN, among_best, holm, margin_p_value, verdicts
from specpolicy.rollout.episodes import EpisodeResult
from specpolicy.utils.progress import Bar, progress_bar

REFERENCE = "ddpm"
"""The sampler that others are compared with."""

NS_PER_MS = 1e6


@dataclass(frozen=True)
class LatencySummary:
    """Latency of one sampler in milliseconds.

    Attributes:
        calls: how many were timed.
        p50: the median; like the other quantiles None where there are too few calls to see it.
        p95: the 95th percentile.
        p99: the 99th percentile.
        speed_up: median latency of the reference over this sampler's, from paired calls; None for the reference.
    """

    calls: int
    p50: Estimate | None
    p95: Estimate | None
    p99: Estimate | None
    speed_up: Estimate | None


@dataclass(frozen=True)
class LoopSummary:
    """What is known of a controller beside its sampler.

    Attributes:
        executor: its name.
        injected: label of the injected latency.
        description: of the injected latency, for the record.
        latency_ms: median latency of a whole inference: the injected one, else as it was measured; None if unknown.
        world_waits: whether the world waits for the policy (lockstep), so that the latency changes nothing.
        constant: whether the injected latency is constant.
        metrics: of the control loop.
    """

    executor: str
    injected: str
    description: Mapping[str, Any]
    latency_ms: float | None
    world_waits: bool
    constant: bool
    metrics: ControlMetrics


@dataclass(frozen=True)
class SummaryRow:
    """What is known of one sampler or controller; ``None`` where nothing is.

    Attributes:
        sampler: its name.
        exact: whether it samples the policy's own distribution.
        episodes: how many were played.
        successes: how many of them succeeded.
        crashed: how many of them crashed; a crashed episode is not a success.
        seeds: initial states that these episodes began from; fewer than episodes if there are repeats.
        success: success rate; repeats from one seed are treated as a cluster.
        nfe: sequential network evaluations a chunk.
        nfe_error: its standard error (between seeds).
        rows: states that the network evaluated a chunk: the sizes of its batches, added up.
        latency: of a chunk.
        pairs: episodes that the reference has run too, of the same seed and repeat. Repeats that only one of the two
            has run take no part in the comparison, so ``difference`` may differ from that of the success rates.
        difference: success rate minus the reference's on these pairs.
        p_value: exact and two-sided: McNemar's test on one repeat a seed, the sign-flip test over seeds on several.
        p_corrected: the same, with Holm's correction over the rows of the table.
        margin: loss of success that still counts as non-inferior.
        verdict: ``"non-inferior"``, ``"inferior"`` or ``"undecided"`` at the margin, corrected likewise.
        best: whether the sampler is in the set that cannot be told from the best.
        anytime: whether difference, p value and verdict hold however often they are looked at.
        sealed: how many of the seeds are sealed ones.
        score: mean sum of rewards of an episode, 0 for a crashed one, where rewards say more than success does (on
            PushT the best coverage); its interval is between seeds. None where rewards add up to success.
        steps: mean length of the episodes that succeeded, in environment steps; its interval is between seeds.
        loop: of a controller; None for a plain evaluation.
        precision: of the network where it was a reduced one: then exact is for the reduced network's distribution.
    """

    sampler: str
    exact: bool | None
    episodes: int = 0
    successes: int = 0
    crashed: int = 0
    seeds: int = 0
    success: Estimate | None = None
    nfe: float | None = None
    nfe_error: float | None = None
    rows: float | None = None
    latency: LatencySummary | None = None
    pairs: int = 0
    difference: Estimate | None = None
    p_value: float | None = None
    p_corrected: float | None = None
    margin: float | None = None
    verdict: str | None = None
    best: bool | None = None
    anytime: bool = False
    sealed: int = 0
    score: Estimate | None = None
    steps: Estimate | None = None
    loop: LoopSummary | None = None
    precision: str | None = None


def summarize(
    records: Sequence[EpisodeResult] = (),
    latency: LatencyRun | None = None,
    exact: Mapping[str, bool] | None = None,
    reference: str = REFERENCE,
    margin: float = MARGIN,
    anytime: bool = False,
    precision: Mapping[str, str | None] | None = None,
) -> list[SummaryRow]:
    """Summarize episodes and timed calls by sampler.

    Args:
        records: finished episodes of one task, each once.
        latency: timed calls.
        exact: whether a sampler is exact, where ``latency`` does not say so.
        reference: the sampler that others are compared with; without it there are no comparisons.
        margin: loss of success that still counts as non-inferior, in (0, 1).
        anytime: compare with tests that hold however often they are looked at, for runs that are extended.
        precision: the reduced precision of a sampler's network, where ``latency`` does not say so.

    Returns:
        One row a sampler, the reference first, then in the order of ``exact``, ``latency`` and ``records``.

    Raises:
        ValueError: episodes of several tasks, or an episode twice.
    """
    tasks = {record.task for record in records}
    if len(tasks) > 1:
        raise ValueError(f"one table holds one task, these episodes are of {sorted(tasks)}: summarize them apart")
    if len({record.key for record in records}) < len(records):
        raise ValueError("an episode is given twice; read the folder with read_results(), which counts each once")
    logs = latency.samplers if latency else {}
    by_sampler: dict[str, list[EpisodeResult]] = defaultdict(list)
    for record in records:
        by_sampler[record.sampler].append(record)
    known = {**{name: log.exact for name, log in logs.items()}, **(exact or {})}
    reduced = {**{name: log.precision for name, log in logs.items()}, **(precision or {})}
    names = list(dict.fromkeys([*(exact or {}), *logs, *by_sampler]))
    names.sort(key=lambda name: name != reference)
    rows = [
        replace(
            _row(
                name, known.get(name), by_sampler.get(name, []), by_sampler.get(reference, []), logs, reference, anytime
            ),
            precision=reduced.get(name),
        )
        for name in names
        if name in by_sampler or name in logs
    ]
    return _judged(rows, by_sampler, reference, margin, anytime)


def _judged(
    rows: list[SummaryRow],
    by_sampler: Mapping[str, list[EpisodeResult]],
    reference: str,
    margin: float,
    anytime: bool,
) -> list[SummaryRow]:
    """Add what depends on all rows: corrected p values, verdicts, and the set that cannot be told from the best."""
    compared = [row for row in rows if row.difference is not None and row.p_value is not None]
    if not compared:
        return rows

    def at_margin(row: SummaryRow) -> float:
        if anytime:
            seeds = paired_differences(by_sampler[row.sampler], by_sampler[reference])
            return anytime_p_value([np.mean(each) for each in seeds.values()], -margin)
        return margin_p_value(row.difference or Estimate(0, 0, 0), margin)

    corrected = holm([row.p_value or 0.0 for row in compared])
    found = verdicts([row.difference for row in compared if row.difference], [*map(at_margin, compared)], margin)
    judged: dict[str, dict[str, Any]] = {
        row.sampler: {"p_corrected": p_value, "margin": margin, "verdict": verdict}
        for row, p_value, verdict in zip(compared, corrected, found, strict=True)
    }

    def differences(first: str, second: str) -> list[float]:
        seeds = paired_differences(by_sampler[first], by_sampler[second]).values()
        return [float(np.mean(each)) for each in seeds] if anytime else [float(sum(each)) for each in seeds]

    best = among_best(
        [row.sampler for row in rows if row.episodes], differences, anytime_p_value if anytime else sign_flip_test
    )
    return [replace(row, best=best.get(row.sampler), **judged.get(row.sampler, {})) for row in rows]


def summarize_controllers(
    controllers: Sequence[ControllerConfig],
    records: Sequence[EpisodeResult],
    exact: Mapping[str, bool],
    traces: Mapping[str, Sequence[Path]],
    precision: Mapping[str, str | None] | None = None,
) -> list[SummaryRow]:
    """Summarize episodes by controller, compared with the same sampler in lockstep where that has been run.

    Args:
        controllers: of the experiment.
        records: its episodes, each once; their ``sampler`` is the controller's name.
        exact: whether a sampler is exact, by name.
        traces: files of step traces by controller.
        precision: the reduced precision of a sampler's network, by name.

    Returns:
        One row for each controller that has episodes, in the order of ``controllers``, sampler by sampler.
    """
    rows = []
    with progress_bar("reading traces", sum(map(len, traces.values()))) as bar:
        for sampler in dict.fromkeys(each.sampler for each in controllers):
            family = {each.name: each for each in controllers if each.sampler == sampler}
            waiting = [name for name, each in family.items() if each.executor.config.world_waits]
            summaries = summarize(
                [record for record in records if record.sampler in family],
                exact=dict.fromkeys(family, exact[sampler]),
                reference=waiting[0] if waiting else "",
                precision=dict.fromkeys(family, (precision or {}).get(sampler)),
            )
            by_name = {row.sampler: row for row in summaries}
            for name, controller in family.items():
                if name in by_name:
                    metrics = measure(_read_traces(traces.get(name, ()), bar))
                    rows.append(replace(by_name[name], sampler=sampler, loop=_loop_summary(controller, metrics)))
    return rows


def _loop_summary(controller: ControllerConfig, metrics: ControlMetrics) -> LoopSummary:
    typical = controller.injected.latency.typical_s
    measured = None if metrics.inference_ms is None else metrics.inference_ms.p50
    return LoopSummary(
        executor=controller.executor_name,
        injected=controller.injected.label,
        description=controller.injected.description,
        latency_ms=measured if typical is None else 1e3 * typical,
        world_waits=controller.executor.config.world_waits,
        constant=isinstance(controller.injected.latency, Constant),
        metrics=metrics,
    )


def _read_traces(paths: Sequence[Path], bar: Bar) -> Iterator[EpisodeTrace]:
    for path in paths:
        bar.advance()
        try:
            yield read_trace(path)
        except TraceError as error:
            warnings.warn(f"{error}; the loop's numbers do without it", stacklevel=2)


def _row(
    name: str,
    exact: bool | None,
    mine: list[EpisodeResult],
    theirs: list[EpisodeResult],
    logs: Mapping[str, CallLog],
    reference: str,
    anytime: bool,
) -> SummaryRow:
    nfe, nfe_error = _nfe(mine, logs.get(name))
    pairs, difference, p_value = (0, None, None) if name == reference else _compare(mine, theirs, anytime)
    return SummaryRow(
        sampler=name,
        exact=exact,
        episodes=len(mine),
        successes=sum(record.success for record in mine),
        crashed=sum(record.crashed for record in mine),
        seeds=len({record.seed for record in mine}),
        success=_success(mine),
        nfe=nfe,
        nfe_error=nfe_error,
        rows=_mean_rows(mine, logs.get(name)),
        latency=_latency(logs[name], None if name == reference else logs.get(reference)) if name in logs else None,
        pairs=pairs,
        difference=difference,
        p_value=p_value,
        anytime=anytime,
        sealed=sum(map(is_sealed, {record.seed for record in mine})),
        score=_score(mine),
        steps=_mean_over_seeds((record.seed, record.steps) for record in mine if record.success),
    )


def _score(records: list[EpisodeResult]) -> Estimate | None:
    if all(record.crashed or record.return_ == float(record.success) for record in records):
        return None
    return _mean_over_seeds((record.seed, 0.0 if record.crashed else record.return_) for record in records)


def _mean_over_seeds(values: Iterable[tuple[int, float]]) -> Estimate | None:
    seeds: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        seeds[seed].append(value)
    return mean_interval([float(np.mean(group)) for group in seeds.values()]) if len(seeds) > 1 else None


def _success(records: list[EpisodeResult]) -> Estimate | None:
    seeds: dict[int, list[bool]] = defaultdict(list)
    for record in records:
        seeds[record.seed].append(record.success)
    if not seeds:
        return None
    return clustered_clopper_pearson(
        [sum(trials) for trials in seeds.values()], [len(trials) for trials in seeds.values()]
    )


def _nfe(records: list[EpisodeResult], log: CallLog | None) -> tuple[float | None, float | None]:
    seeds: dict[int, list[EpisodeResult]] = defaultdict(list)
    for record in records:
        if record.chunks:
            seeds[record.seed].append(record)
    totals = [(sum(sum(each.passes) for each in group), sum(each.chunks for each in group)) for group in seeds.values()]
    if not totals and log is not None:
        totals = [(passes, 1) for passes in log.passes]
    if not totals:
        return None, None
    mean, error = ratio_of_sums(*zip(*totals, strict=True))
    return mean, None if math.isnan(error) else error


def _mean_rows(records: list[EpisodeResult], log: CallLog | None) -> float | None:
    played = [record for record in records if record.chunks]
    if played:
        return sum(record.evaluations for record in played) / sum(record.chunks for record in played)
    return float(np.mean(log.evaluations)) if log is not None and log.evaluations else None


def paired_differences(
    mine: Iterable[EpisodeResult], theirs: Iterable[EpisodeResult]
) -> dict[tuple[str, int], list[int]]:
    """Subtract the successes of two samplers on the episodes that both have run.

    Args:
        mine: episodes of one sampler, of one task or several.
        theirs: episodes of the other.

    Returns:
        For each task and seed -1, 0 or 1 for each repeat, in the order of the seeds.
    """
    baseline = {(record.task, record.seed, record.repeat): record.success for record in theirs}
    seeds: dict[tuple[str, int], list[int]] = defaultdict(list)
    for record in sorted(mine, key=lambda record: record.seed):
        theirs_too = baseline.get((record.task, record.seed, record.repeat))
        if theirs_too is not None:
            seeds[record.task, record.seed].append(int(record.success) - int(theirs_too))
    return seeds


def seed_differences(mine: Iterable[EpisodeResult], theirs: Iterable[EpisodeResult]) -> list[int]:
    """Sum :func:`paired_differences` over the repeats of each task and seed.

    Args:
        mine: episodes of one sampler.
        theirs: episodes of the other.

    Returns:
        One whole number for each seed.
    """
    return [sum(each) for each in paired_differences(mine, theirs).values()]


def _compare(
    mine: list[EpisodeResult], theirs: list[EpisodeResult], anytime: bool
) -> tuple[int, Estimate | None, float | None]:
    seeds = paired_differences(mine, theirs)
    if not seeds:
        return 0, None, None
    pairs = sum(len(differences) for differences in seeds.values())
    rates = [float(np.mean(differences)) for differences in seeds.values()]
    if anytime:
        return pairs, confidence_sequence(rates), anytime_p_value(rates)
    return pairs, paired_difference(rates), sign_flip_test([sum(differences) for differences in seeds.values()])


def _latency(log: CallLog, reference: CallLog | None) -> LatencySummary:
    milliseconds = np.asarray(log.nanoseconds) / NS_PER_MS
    calls = len(milliseconds)

    def quantile(q: float) -> Estimate | None:
        return quantile_interval(milliseconds, q) if calls * (1 - q) >= 1 - 1e-9 and calls > 1 else None

    paired = reference is not None and calls > 1 and len(reference.nanoseconds) == calls
    speed_up = ratio_of_medians(reference.nanoseconds, log.nanoseconds) if reference is not None and paired else None
    return LatencySummary(calls, quantile(0.5), quantile(0.95), quantile(0.99), speed_up)
