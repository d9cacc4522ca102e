"""Tables of ``bench_asdsv.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.images.tables import apart
from specpolicy.evaluation.statistics import mean_interval, ratio_of_medians

Rows = Mapping[str, list[Mapping[str, Any]]]


def overview(found: Mapping[str, Any]) -> str:
    """All that has been measured."""
    target, draft = found["identity"]["parameters"]
    parts = [
        f"The target network has {target:,} parameters, the one that drafts {draft:,}; the chain has "
        f"{found['identity']['steps']} steps. What is not called exact is approximate.\n"
    ]
    for group, title in (
        ("chains", "One chain at a time"),
        ("batches", "Many in a call"),
        ("pipelines", "Two diffusers pipelines, of which the second drafts; many images in a call"),
    ):
        if found.get(group):
            parts.append(f"## {title}\n\n{spent(found[group], found)}")
    if found.get("distances"):
        text = apart(found | {"identity": found["identity"] | {"device": "cpu"}})
        parts.append(f"## How far the images are from held-out ones\n\n{text}")
    return "\n".join(parts)


def spent(rows: Rows, found: Mapping[str, Any]) -> str:
    """Evaluations and times of one group; the first way is what times relate to."""
    head = ["way", "distribution", "NFE of the target", "its rows", "NFE of the draft network", "kept, % of drafted"]
    lines = [[*head, "clock, × faster", "processor, × faster"], ["---", "---", *["---:"] * 6]]
    first = next(iter(rows.values()))
    for name, calls in rows.items():
        alone = name == "draft network alone"
        drafted, kept = (sum(row[each] for row in calls) for each in ("drafted", "kept"))
        passes = mean_interval(_column(calls, "passes"))
        means = [f"{_column(calls, each).mean():.0f}" for each in ("rows", "draft_passes")]
        # the draft network's own chain asks no target
        cells = ["0", "0", f"{passes.value:.0f}"] if alone else [_interval(passes, ".1f"), *means]
        cells.append(f"{100 * kept / drafted:.0f}" if drafted else "–")
        for clock in ("wall_seconds", "cpu_seconds"):
            faster = ratio_of_medians(_column(first, clock)[: len(calls)], _column(calls, clock))
            cells.append("–" if calls is first else _interval(faster, ".2f"))
        lines.append([name, "exact" if found["exact"][name] else "approx.", *cells])
    machine, packages = found["provenance"]["machine"], found["provenance"]["packages"]
    median = np.median(_column(first, "cpu_seconds"))
    threads = machine.get("torch_threads", machine.get("threads"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + (
        f"\n{len(first)} calls of each way, all on the same seeds, in turn; 95 % intervals, of times those of the "
        f"ratio of medians. A call of the first takes {median:.2f} s of the processor. "
        f"{machine.get('cpu', 'cpu')}, {threads} thread(s), torch {packages['torch']}, diffusers "
        f"{packages['diffusers']}.\n"
    )


def _column(rows: list[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)


def _interval(estimate: Any, form: str) -> str:
    value, low, high = estimate
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
