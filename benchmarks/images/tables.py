"""Tables and figures of ``bench_speculation.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.images.distance import FrechetScale, Measured
from specpolicy.evaluation.statistics import mean_interval, ratio_of_medians, ratio_of_sums
from specpolicy.evaluation.two_sample import energy_distance, equality_p_value

TENTHS = 10
PAIRS = [(drafter, verifier) for drafter in ("frozen", "free") for verifier in ("reflection", "residual", "block")]
COLOURS = {"reflection": "C7", "residual": "C1", "block": "C0"}
PUBLISHED = {
    "block": "block against residual, same drafts: 1.5 to 6.3 % less wall clock",
    "frozen": "Frozen against Free: 9 to 45 % more kept a round, yet 8 to 31 % more wall clock",
}


def column(rows: list[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)


def kept_a_round(rows: list[Mapping[str, Any]]) -> np.ndarray:
    """Steps kept a round, of each chain; shape (chains,)."""
    tenths = column(rows, "tenths")
    return tenths[..., 2].sum(1) / tenths[..., 0].sum(1)


def ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """Ratio of two sums over the same seeds, with a 95 % interval."""
    value, error = ratio_of_sums(above, below)
    return value, value - 1.96 * error, value + 1.96 * error


def overview(found: Mapping[str, Any]) -> str:
    """NFE, rows, acceptance and time of each sampler; distances, if there are any."""
    parts = [table(found) for part, table in (("chains", spent), ("distances", apart)) if found.get(part)]
    return "\n".join(parts)


def spent(found: Mapping[str, Any]) -> str:
    """What the single chains took."""
    steps, chains = found["identity"]["steps"], found["chains"]
    first = chains["sequential"]
    head = ["sampler", "NFE", "× fewer", "rows", "kept, % of drafted", "kept a round", "clock, × faster"]
    lines = [[*head, "processor, × faster"], ["---", *["---:"] * len(head)]]
    for name, rows in chains.items():
        passes = mean_interval(column(rows, "passes"))
        fewer = [steps / each for each in (passes.value, passes.high, passes.low)]
        cells = [_interval(passes, ".1f"), _interval(fewer, ".2f"), f"{column(rows, 'rows').mean():.0f}"]
        drafted, kept = column(rows, "tenths")[..., 1:].sum((0, 1))
        cells += [f"{100 * kept / drafted:.0f}", f"{kept_a_round(rows).mean():.2f}"] if drafted else ["–", "–"]
        for clock in ("wall_seconds", "cpu_seconds"):
            faster = ratio_of_medians(column(first, clock)[: len(rows)], column(rows, clock))
            cells.append("–" if name == "sequential" else _interval(faster, ".2f"))
        lines.append([name, *cells])
    return _table(lines) + (
        f"\n{steps} steps, {len(first)} chains of each sampler one by one, all samplers on the same seeds in turn; "
        "95 % intervals, of times those of the ratio of medians over seeds. All samplers are exact. Frozen's own pass "
        f"a round is among its passes. {_machine(found)}\n"
    )


def apart(found: Mapping[str, Any]) -> str:
    """How far sets of images are from held-out ones, and from the sequential chain's."""
    measured = found["distances"]
    lines = [
        ["images", "Fréchet distance", "minus sequential's", "energy distance to sequential", "p (same distribution)"]
    ]
    lines.append(["---", *["---:"] * 4])
    for name, row in measured["sets"].items():
        against = ["–"] * 3
        if row["more"]:
            against = [_interval(row["more"], "+.2f"), f"{row['energy']:+.4f}", f"{row['p']:.2g}"]
        lines.append([name, _interval(row["frechet"], ".2f"), *against])
    return _table(lines) + (
        f"\n{measured['images']} images of each set, {found['identity']['steps']} steps, in the features of "
        f"EfficientNet-Lite0 at 112 pixels, on {measured['rank']} principal axes of {measured['reference']} held-out "
        "images, from which the Fréchet distance is measured; unlike FID proper it is not comparable with other "
        "people's. Intervals: bootstrap over images, 95 %. Energy distance: unbiased, zero on average for the same "
        "distribution; p from permutations.\n"
    )


def _table(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comparison(found: Mapping[str, Any]) -> str:
    """Soen et al.'s three findings, as ratios over the same seeds."""
    chains = found["chains"]
    lines = [
        "| window | drafts | block / residual: passes | processor | residual / reflection: passes |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for window in _windows(found):
        for drafter in ("frozen", "free"):
            rows = {verifier: chains[f"{drafter} {verifier} {window}"] for verifier in COLOURS}
            cells = [
                ratio(column(rows["block"], "passes"), column(rows["residual"], "passes")),
                ratio(column(rows["block"], "cpu_seconds"), column(rows["residual"], "cpu_seconds")),
                ratio(column(rows["residual"], "passes"), column(rows["reflection"], "passes")),
            ]
            lines.append(f"| {window} | {drafter} | {' | '.join(_interval(each, '.3f') for each in cells)} |")
    lines += [
        "",
        "| window | verification | Frozen / Free: kept a round | passes | processor |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for window in _windows(found):
        for verifier in COLOURS:
            frozen, free = (chains[f"{drafter} {verifier} {window}"] for drafter in ("frozen", "free"))
            cells = [
                ratio(kept_a_round(frozen), kept_a_round(free)),
                *(ratio(column(frozen, each), column(free, each)) for each in ("passes", "cpu_seconds")),
            ]
            lines.append(f"| {window} | {verifier} | {' | '.join(_interval(each, '.2f') for each in cells)} |")
    return "\n".join(lines) + f"\n\nPublished (Soen et al. 2026): {'; '.join(PUBLISHED.values())}.\n"


def comparison_figure(found: Mapping[str, Any]) -> Figure:
    """NFE, steps kept a round and time over the window, for the six pairs."""
    figure = Figure(figsize=(10, 3.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    windows, chains = _windows(found), found["chains"]
    place = np.arange(len(windows))
    panels = figure.subplots(1, 3)
    whole = np.median(column(chains["sequential"], "cpu_seconds"))
    for number, (drafter, verifier) in enumerate(PAIRS):
        rows = [chains[f"{drafter} {verifier} {window}"] for window in windows]
        shown = (
            [mean_interval(column(each, "passes")) for each in rows],
            [mean_interval(kept_a_round(each)) for each in rows],
            [mean_interval(column(each, "cpu_seconds") / whole) for each in rows],
        )
        for axes, values in zip(panels, shown, strict=True):
            middle = np.array([each.value for each in values])
            reach = np.array([[each.value - each.low, each.high - each.value] for each in values]).T
            axes.errorbar(
                place + (number - 2.5) * 0.06, middle, yerr=reach, marker="o", markersize=4, capsize=2,
                color=COLOURS[verifier], linestyle="-" if drafter == "free" else "--", label=f"{drafter}, {verifier}",
                markerfacecolor=COLOURS[verifier] if drafter == "free" else "white",
            )  # fmt: skip
    for axes, title in zip(panels, ("NFE", "steps kept a round", "processor time, × sequential"), strict=True):
        axes.set(title=title, xlabel="window", ylim=(0, None))
        axes.set_xticks(place, windows)
        axes.spines[["top", "right"]].set_visible(False)
    panels[2].axhline(1.0, color="black", linewidth=0.8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(f"{found['identity']['steps']} steps, {len(chains['sequential'])} chains", fontsize=10)
    return figure


def accepted_along(found: Mapping[str, Any]) -> Figure:
    """Where along the chain drafts are kept, and where the evaluations go."""
    figure = Figure(figsize=(9, 3.4), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    chains, middle = found["chains"], (np.arange(TENTHS) + 0.5) / TENTHS
    share, spent = figure.subplots(1, 2)
    widest = [f"{drafter} block {_windows(found)[-1]}" for drafter in ("frozen", "free")] if _windows(found) else []
    for number, name in enumerate([*(each for each in chains if each.startswith(("adaptive", "recycled"))), *widest]):
        rounds, drafted, kept = column(chains[name], "tenths").sum(0).T
        drawn = {"color": f"C{number}", "marker": "o", "markersize": 4, "label": name}
        share.plot(middle, np.divide(kept, drafted, out=np.full(TENTHS, np.nan), where=drafted > 0), **drawn)
        spent.plot(middle, rounds / len(chains[name]), **drawn)
    spent.axhline(found["identity"]["steps"] / TENTHS, color="black", linewidth=0.8)
    spent.annotate("sequential", (0.02, found["identity"]["steps"] / TENTHS), va="bottom", fontsize=8)
    share.set(title="share of drafted steps that is kept", ylim=(0, 1.02))
    spent.set(title="rounds a tenth of the chain", ylim=(0, 1.1 * found["identity"]["steps"] / TENTHS))
    for axes in (share, spent):
        axes.set(xlabel="position in the chain (0 is noise)", xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    spent.legend(fontsize=8, frameon=False)
    return figure


def distances(
    features: Mapping[str, np.ndarray], rank: int = 32, baseline: str = "sequential", paired: bool = False
) -> dict[str, Any]:
    """How far each set is from the reference, and from a baseline's.

    Args:
        features: of ``reference``, ``held out``, the baseline and others, by name.
        rank: of :class:`FrechetScale`.
        baseline: name of the set that the others are compared with.
        paired: images of the same number come from the same noise in all sets but the held-out one, so that no test
            of independent draws is made of them.
    """
    scale = FrechetScale.of(features["reference"], rank)
    first, sets = Measured.of(scale, features[baseline]), dict[str, Any]()
    for name, each in features.items():
        if name == "reference":
            continue
        own, alike = name == baseline, paired and name != "held out"
        measured, pair = Measured.of(scale, each), (scale.project(each), scale.project(features[baseline]))
        sets[name] = {
            "frechet": measured.interval()._asdict(),
            "more": None if own else measured.minus(first, paired=alike)._asdict(),
            "energy": None if own or alike else energy_distance(*pair).distance,
            "p": None if own or alike else equality_p_value([pair]),
        }
    return {"images": first.images, "reference": len(features["reference"]), "rank": rank, "sets": sets}


def _windows(found: Mapping[str, Any]) -> list[int]:
    """The windows at which all six pairs were measured."""
    chains = found["chains"]
    there = sorted({int(name.split()[-1]) for name in chains if name.startswith("free ")})
    return [window for window in there if all(f"{' '.join(pair)} {window}" in chains for pair in PAIRS)]


def _interval(estimate: Any, form: str) -> str:
    value, low, high = estimate.values() if isinstance(estimate, Mapping) else estimate
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _machine(found: Mapping[str, Any]) -> str:
    machine, packages = found["provenance"]["machine"], found["provenance"]["packages"]
    threads = machine.get("torch_threads", machine.get("threads"))
    return (
        f"{machine.get('cpu', found['identity']['device'])}, {threads} thread(s), torch {packages['torch']}, "
        f"diffusers {packages['diffusers']}."
    )
