"""The fastest samplers of a task, and what to know before relying on the numbers, computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specpolicy.evaluation.report.results import TaskResults, mapping
from specpolicy.evaluation.summary import SummaryRow
from specpolicy.evaluation.tables import counted, interval_text, p_text
from specpolicy.evaluation.verdicts import precision_note

SIGNIFICANT = 0.05
FEW_EPISODES, FEW_CALLS = 50, 100


@dataclass(frozen=True)
class Recommendation:
    """The fastest sampler of a kind.

    Attributes:
        kind: ``"distribution"``: with the reference's distribution; ``"exact"``: of any exact chain; ``"any"``.
        title: of which kind, in words.
        row: what is known of it.
    """

    kind: str
    title: str
    row: SummaryRow


def recommend(results: TaskResults) -> list[Recommendation]:
    """Choose the fastest sampler with the reference's distribution, the fastest exact one, and the fastest of all.

    Args:
        results: of one task.

    Returns:
        One of each kind that there is, by median latency; none where no latency was measured.
    """
    reference = results.row(results.reference)
    kinds: list[tuple[str, str, Callable[[SummaryRow], bool]]] = [
        ("exact", "Fastest exact sampler", lambda row: row.exact is True),
        ("any", "Fastest of any kind", lambda row: True),
    ]
    if reference is not None and reference.exact:
        kinds.insert(
            0, ("distribution", f"Fastest with the distribution of {reference.sampler}", results.same_distribution)
        )
    timed = [(row.latency.p50.value, row) for row in results.rows if row.latency and row.latency.p50]
    found = []
    for kind, title, belongs in kinds:
        fastest = min((each for each in timed if belongs(each[1])), key=lambda each: each[0], default=None)
        if fastest is not None:
            found.append(Recommendation(kind, title, fastest[1]))
    return found


def differs(row: SummaryRow) -> bool:
    """Tell whether the success rate differs from the reference's by more than chance, corrected for the table's rows.

    Args:
        row: see :func:`summarize`.
    """
    return row.difference is not None and row.p_corrected is not None and row.p_corrected < SIGNIFICANT


@dataclass(frozen=True)
class Caution:
    """A sentence that the reader should know; a grave one can change the conclusion."""

    text: str
    grave: bool


def cautions_of(results: TaskResults) -> list[Caution]:
    """List all cautions that apply, the grave ones first.

    Args:
        results: of one task.
    """
    reduced = precision_note(row.precision for row in results.rows)
    grave = [*results.problems, *([reduced] if reduced else []), *_success(results), *_machines(results)]
    light = [*_gaps(results), *_provenance(results)]
    return [Caution(text, grave=True) for text in grave] + [Caution(text, grave=False) for text in light]


def _success(results: TaskResults) -> Iterator[str]:
    for row in results.rows:
        if row.difference is not None and row.p_corrected is not None and differs(row):
            yield (
                f"Success of {results.marked(row.sampler)} differs from {results.reference}: "
                f"{interval_text(row.difference, '+.1f', 100)} points, p = {p_text(row.p_corrected)}"
                + (", although both sample the same distribution." if results.same_distribution(row) else ".")
            )
    crashed = {row.sampler: f"{row.crashed} of {row.episodes}" for row in results.rows if row.crashed}
    if crashed:
        yield f"Crashed episodes, counted as failures: {_listed(results, crashed)}."
    if results.reference is None:
        yield "No reference sampler: no ratios, no differences."
    if not results.records:
        yield "No episodes: nothing is known about success."
        return
    few = {row.sampler: str(row.episodes) for row in results.rows if 0 < row.episodes < FEW_EPISODES}
    if few:
        yield f"Fewer than {FEW_EPISODES} episodes: {_listed(results, few)}."


def _machines(results: TaskResults) -> Iterator[str]:
    if results.latency is None:
        yield "No latency was measured."
        return
    there = _machine(results.latency.provenance)
    ran_on = [_machine(entry) for entry in results.manifest.provenance]
    if there and ran_on and there not in ran_on:
        yield f"Latency was measured on {', '.join(there)}; the episodes ran on {', '.join(ran_on[-1])}."


def _gaps(results: TaskResults) -> Iterator[str]:
    rows, latency = results.rows, results.latency
    without = [row.sampler for row in rows if not row.episodes]
    if without and results.records:
        yield f"Without episodes: {_listed(results, without)}."
    unpaired = [row.sampler for row in rows if row.difference is not None and row.pairs < row.episodes]
    if unpaired:
        yield f"Not all episodes are paired with one of {results.reference}: {_listed(results, unpaired)}."
    absent = sorted(set(results.manifest.samplers) - {row.sampler for row in rows})
    if absent:
        yield f"In the manifest, but without results: {_listed(results, absent)}."
    if latency is None:
        return
    untimed = [row.sampler for row in rows if row.latency is None]
    if untimed:
        yield f"Without measured latency: {_listed(results, untimed)}."
    calls = {name: len(log.nanoseconds) for name, log in latency.samplers.items()}
    few = {name: str(count) for name, count in calls.items() if count < FEW_CALLS}
    if few:
        yield f"Fewer than {FEW_CALLS} timed calls: {_listed(results, few)}."
    if any(log.rounds and not log.drafted for log in latency.samplers.values()):
        yield "The latency measurement has no lengths of drafts: acceptance along the chain is not known."


def _provenance(results: TaskResults) -> Iterator[str]:
    machine = mapping(mapping(results.latency.provenance).get("machine")) if results.latency else {}
    load, cores = machine.get("load_1min"), machine.get("cores")
    if isinstance(load, int | float) and isinstance(cores, int) and load > cores > 0:
        yield f"The machine was busy while latency was measured: load {load:.1f} on {counted(cores, 'core')}."
    runs = results.manifest.provenance
    git = [mapping(entry.get("git")) for entry in runs]
    revisions = {str(each["revision"]) for each in git if each.get("revision")}
    if len(revisions) > 1:
        yield f"{counted(len(runs), 'run')} of {len(revisions)} revisions of the code added to these results."
    if any(each.get("dirty") for each in git):
        yield "A run was made with uncommitted changes to the code."


def _machine(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    machine = mapping(provenance.get("machine"))
    return tuple(str(machine[key]) for key in ("cpu", "device", "gpu") if machine.get(key))


def _listed(results: TaskResults, samplers: Mapping[str, str] | Sequence[str]) -> str:
    """Join samplers with commas, approximate ones marked, each with its number if there is one."""
    numbers = samplers if isinstance(samplers, Mapping) else dict.fromkeys(samplers, "")
    return ", ".join(f"{results.marked(name)} {number}".strip() for name, number in numbers.items())
