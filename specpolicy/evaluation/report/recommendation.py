"""What a reader should know before relying on the numbers, computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from specpolicy.evaluation.report.formatting import counted, interval, listed, milliseconds, p_value, points, times
from specpolicy.evaluation.report.results import RealTimeBudget, TaskResults
from specpolicy.evaluation.summary import SummaryRow

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Pick:
    """The fastest sampler of a kind.

    Attributes:
        title: of which kind.
        row: what is known of it.
        remarks: what to know before it is used, one sentence each.
    """

    title: str
    row: SummaryRow
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Recommendation:
    """What follows from the results of a task.

    Attributes:
        advice: the conclusion, in one or two sentences.
        picks: the fastest sampler of the reference's law, of any exact law, and of any kind; none is named twice.
        fastest: the same rows by ``"law"``, ``"exact"`` and ``"any"``, with repetitions; a key is absent without one.
    """

    advice: str
    picks: tuple[Pick, ...]
    fastest: Mapping[str, SummaryRow] = field(default_factory=dict)


def recommend(results: TaskResults, pace: RealTimeBudget | None = None) -> Recommendation:
    """The fastest sampler of each kind, and which of them to use."""
    reference = results.row(results.reference)
    timed = [row for row in results.rows if row.latency and row.latency.p50]
    if not timed:
        return Recommendation(
            "No latency was measured, so that nothing can be said about which sampler is fastest.", ()
        )
    kinds: list[tuple[str, str, Callable[[SummaryRow], bool]]] = [
        ("exact", "Fastest exact sampler", lambda row: row.exact is True),
        ("any", "Fastest of any kind", lambda row: True),
    ]
    if reference is not None and reference.exact:
        kinds.insert(0, ("law", f"Fastest with the law of {reference.sampler}", results.same_law))
    picks: list[Pick] = []
    fastest: dict[str, SummaryRow] = {}
    for kind, title, belongs in kinds:
        row = min(filter(belongs, timed), key=_median, default=None)
        if row is None:
            continue
        if row not in fastest.values():
            level = [other for other in timed if belongs(other) and _level(other, row)]
            picks.append(Pick(title, row, tuple(_remarks(results, row, level, pace))))
        fastest[kind] = row
    return Recommendation(_advice(results, reference, picks), tuple(picks), fastest)


def faster(row: SummaryRow) -> bool:
    """Whether the whole interval of the speed-up lies above 1."""
    speed_up = row.latency.speed_up if row.latency else None
    return speed_up is not None and speed_up.low > 1


def _advice(results: TaskResults, reference: SummaryRow | None, picks: list[Pick]) -> str:
    if reference is None:
        row = picks[-1].row
        fastest = f"{results.marked(row.sampler)}, {milliseconds(_median(row))} ms a chunk"
        return f"Fastest: {fastest}. There is no sampler to compare it with."
    first, others = picks[0].row, [pick.row for pick in picks[1:] if faster(pick.row)]
    if results.same_law(first) and first.sampler != reference.sampler and faster(first):
        lead = f"Use {first.sampler}: it samples the law of {reference.sampler} at {_speed_up(first)} its speed."
    else:
        lead = f"No sampler with the law of {reference.sampler} is faster than {reference.sampler} itself."
        others = [pick.row for pick in picks if faster(pick.row) and not results.same_law(pick.row)]
    if not others:
        return lead
    offers = [f"{results.marked(row.sampler)} at {_speed_up(row)}{_price(row)}" for row in others]
    return f"{lead} Faster, but of another law: {listed(offers)}."


def _remarks(results: TaskResults, row: SummaryRow, level: list[SummaryRow], pace: RealTimeBudget | None) -> list[str]:
    remarks = [_meaning(results, row), _risk(results, row)]
    keeps = pace.kept_by(row) if pace else None
    if pace and keeps is not None and row.latency and row.latency.p95:
        verb = "Keeps up" if keeps else "Does not keep up"
        remarks.append(f"{verb} with the robot: p95 is {milliseconds(row.latency.p95.value)} ms, {pace}.")
    if level:
        remarks.append(f"As fast within the intervals: {listed([results.marked(other.sampler) for other in level])}.")
    return [remark for remark in remarks if remark]


def _meaning(results: TaskResults, row: SummaryRow) -> str:
    law = results.laws.get(row.sampler)
    if row.sampler == results.reference:
        return "It is what the others are compared with."
    if results.same_law(row):
        return f"Exact: the law of {results.reference}, so also its success rate."
    if row.exact:
        own = f"its own chain of {law}" if law else "its own chain"
        return f"Exact for {own}, whose law is not that of {results.reference}."
    return "Approximate: not the law that the policy was trained for."


def differs(row: SummaryRow) -> bool:
    """Whether the success rate differs from the reference's by more than chance."""
    return row.difference is not None and row.p_value is not None and row.p_value < SIGNIFICANT


def _price(row: SummaryRow) -> str:
    if row.difference is None or not differs(row):
        return ""
    change = "less" if row.difference.value < 0 else "more"
    return f" with {100 * abs(row.difference.value):.0f} points {change} success"


def _risk(results: TaskResults, row: SummaryRow) -> str:
    if row.sampler == results.reference:
        return ""
    if row.difference is None or row.p_value is None:
        return f"No episodes are paired with {results.reference}." if results.reference else ""
    seen = f"p = {p_value(row.p_value)}"
    if differs(row):
        return f"It succeeds {'more' if row.difference.value > 0 else 'less'} often than {results.reference} ({seen})."
    if results.same_law(row):
        return f"The difference seen in success is no more than chance ({seen})."
    lost = 100 * -row.difference.low
    risk = f"do not exclude a loss of up to {lost:.1f} points" if lost > 0 else "exclude a loss"
    return f"{counted(row.pairs, 'pair')} of episodes {risk} ({seen})."


def _level(other: SummaryRow, row: SummaryRow) -> bool:
    """Whether the interval of another sampler's median reaches down into this one's."""
    theirs, mine = other.latency and other.latency.p50, row.latency and row.latency.p50
    return bool(other is not row and theirs and mine and theirs.low <= mine.high)


def _median(row: SummaryRow) -> float:
    assert row.latency and row.latency.p50
    return row.latency.p50.value


def _speed_up(row: SummaryRow) -> str:
    assert row.latency and row.latency.speed_up
    return times(row.latency.speed_up.value)


FEW_EPISODES, FEW_CALLS = 50, 100


@dataclass(frozen=True)
class Warning_:
    """One or two sentences; a grave one can change the conclusion."""

    text: str
    grave: bool


def warnings_of(results: TaskResults) -> list[Warning_]:
    """All that apply, the grave ones first."""
    grave = [*results.problems, *_success(results), *_machines(results)]
    light = [*_gaps(results), *_origin(results)]
    return [Warning_(text, grave=True) for text in grave] + [Warning_(text, grave=False) for text in light]


def _success(results: TaskResults) -> Iterator[str]:
    for row in results.rows:
        if row.difference is not None and row.p_value is not None and differs(row):
            change = "more" if row.difference.value > 0 else "less"
            seen = f"{points(row.difference.value)} points {interval(row.difference, points)}"
            text = f"{results.marked(row.sampler)} succeeds {change} often than {results.reference}: {seen}"
            yield f"{text}, p = {p_value(row.p_value)}." + (
                " They have the same law, so that this is either the chance of one in twenty or a sampler is not exact."
                if results.same_law(row)
                else ""
            )
    crashed = [f"{results.marked(row.sampler)} {row.crashed} of {row.episodes}" for row in results.rows if row.crashed]
    if crashed:
        yield f"Crashed episodes, which count as failures: {listed(crashed)}."
    if results.reference is None:
        yield "No sampler took part that the others could be compared with: no ratios, no differences."
    if not results.records:
        yield "No episodes were run: nothing is known about success."
        return
    few = [f"{results.marked(row.sampler)} {row.episodes}" for row in results.rows if 0 < row.episodes < FEW_EPISODES]
    if few:
        yield f"Fewer than {FEW_EPISODES} episodes, so that success is hardly known: {listed(few)}."


def _machines(results: TaskResults) -> Iterator[str]:
    if results.latency is None:
        yield "No latency was measured."
        return
    there = _machine(results.latency.provenance)
    ran_on = [_machine(entry) for entry in results.manifest.provenance]
    if there and ran_on and there not in ran_on:
        yield f"Latency was measured on {', '.join(there)}; the episodes ran on {', '.join(ran_on[-1])}."


def _gaps(results: TaskResults) -> Iterator[str]:
    unseen = [results.marked(row.sampler) for row in results.rows if not row.episodes]
    if unseen and results.records:
        yield f"Without episodes: {listed(unseen)}."
    unpaired = [
        results.marked(row.sampler) for row in results.rows if row.difference is not None and row.pairs < row.episodes
    ]
    if unpaired:
        yield f"Not all episodes are paired with one of {results.reference}: {listed(unpaired)}."
    absent = sorted(set(results.manifest.samplers) - {row.sampler for row in results.rows})
    if absent:
        yield f"Asked for in some run, but without results: {listed([results.marked(name) for name in absent])}."
    if results.latency is None:
        return
    untimed = [results.marked(row.sampler) for row in results.rows if row.latency is None]
    if untimed:
        yield f"Without measured latency: {listed(untimed)}."
    calls = {name: len(log.nanoseconds) for name, log in results.latency.samplers.items()}
    few = [f"{results.marked(name)} {count}" for name, count in calls.items() if count < FEW_CALLS]
    if few:
        yield f"Fewer than {FEW_CALLS} timed calls: {listed(few)}."
    if any(log.rounds and not log.drafted for log in results.latency.samplers.values()):
        yield "Latency was measured before drafted steps were noted, so that acceptance along the chain is not known."


def _origin(results: TaskResults) -> Iterator[str]:
    machine = (results.latency.provenance.get("machine") or {}) if results.latency else {}
    load, cores = machine.get("load_1min"), machine.get("cores")
    if load and cores and load > cores:
        yield (
            f"The machine was busy when the run of the latency began (load {load:.1f} on {counted(cores, 'core')}). "
            "Samplers took turns, so that ratios suffer less than milliseconds."
        )
    runs = results.manifest.provenance
    revisions = {entry["git"]["revision"] for entry in runs if entry.get("git")}
    if len(revisions) > 1:
        yield f"{counted(len(runs), 'run')} of {len(revisions)} revisions of the code added to these results."
    if any(entry["git"].get("dirty") for entry in runs if entry.get("git")):
        yield "A run was made with changes to the code that were not committed."


def _machine(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    machine = provenance.get("machine") or {}
    return tuple(str(machine[key]) for key in ("cpu", "device", "gpu") if machine.get(key))
