"""Which sampler to put on the robot, computed from the rows and from nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..summary import SummaryRow
from .pace import Pace
from .results import TaskResults
from .words import counted, listed, milliseconds, p_value, times

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
class Verdict:
    """What follows from the results of a task.

    Attributes:
        advice: the conclusion, in one or two sentences.
        picks: the fastest sampler of the reference's law, of any exact law, and of any kind; none is named twice.
        fastest: the same rows by ``"law"``, ``"exact"`` and ``"any"``, with repetitions; a key is absent without one.
    """

    advice: str
    picks: tuple[Pick, ...]
    fastest: Mapping[str, SummaryRow] = field(default_factory=dict)


def reach_verdict(results: TaskResults, pace: Pace | None = None) -> Verdict:
    """The fastest sampler of each kind, and which of them to use."""
    reference = results.row(results.reference)
    timed = [row for row in results.rows if row.latency and row.latency.p50]
    if not timed:
        return Verdict("No latency was measured, so that nothing can be said about which sampler is fastest.", ())
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
    return Verdict(_advice(results, reference, picks), tuple(picks), fastest)


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


def _remarks(results: TaskResults, row: SummaryRow, level: list[SummaryRow], pace: Pace | None) -> list[str]:
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
