"""What a reader should know before relying on the numbers, computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .results import TaskResults
from .verdict import differs
from .words import counted, interval, listed, p_value, points

FEW_EPISODES, FEW_CALLS = 50, 100


@dataclass(frozen=True)
class Caution:
    """One or two sentences; a grave one can change the conclusion."""

    text: str
    grave: bool


def cautions_of(results: TaskResults) -> list[Caution]:
    """All that apply, the grave ones first."""
    grave = [*results.problems, *_success(results), *_machines(results)]
    light = [*_gaps(results), *_origin(results)]
    return [Caution(text, grave=True) for text in grave] + [Caution(text, grave=False) for text in light]


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
