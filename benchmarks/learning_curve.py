"""The learning curve of a fine-tuning run, as a table and a figure.

    python examples/finetune_square.py --task square --out runs/finetune-square
    python benchmarks/learning_curve.py runs/finetune-square --start "human and scripted demonstrations"

Written to ``benchmarks/results/finetune`` as ``curve-TASK``, with the run's settings. Evaluations play the same initial
states with the chain's own noise; training episodes have other initial states and more noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from side_by_side import RESULTS

from specpolicy.evaluation.statistics import clopper_pearson
from specpolicy.utils.files import atomic_path
from specpolicy.utils.provenance import collect_provenance

GROUP = 5  # iterations that are shown together


def groups(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training episodes of each few iterations, and every evaluation, in order."""
    found, training = list[dict[str, Any]](), [each for each in curve if "training_successes" in each]
    for line in curve:
        if "evaluation_successes" in line:
            found.append(_part("evaluation", line["iteration"], line["iteration"], [line]))
    for first in range(0, len(training), GROUP):
        part = training[first : first + GROUP]
        found.append(_part("training", part[0]["iteration"], part[-1]["iteration"], part))
    return sorted(found, key=lambda each: (each["last"], each["kind"] == "evaluation"))


def _part(kind: str, first: int, last: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
    successes = sum(line[f"{kind}_successes"] for line in lines)
    episodes = sum(line[f"{kind}_episodes"] for line in lines)
    return {
        "kind": kind,
        "first": first,
        "last": last,
        "successes": successes,
        "episodes": episodes,
        "success": list(clopper_pearson(successes, episodes)),
    }


def table(parts: list[dict[str, Any]]) -> str:
    """One row a group, as the documents show it."""
    lines = ["| iterations | episodes | succeeded | success, % [95 %] |", "| ---: | --- | ---: | ---: |"]
    for part in parts:
        success = "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * each for each in part["success"]))
        span = str(part["last"]) if part["first"] == part["last"] else f"{part['first']}–{part['last']}"
        lines.append(f"| {span} | {part['kind']} | {part['successes']}/{part['episodes']} | {success} |")
    return "\n".join(lines) + "\n"


def draw(parts: list[dict[str, Any]], path: Path) -> None:
    """Success over iterations, with intervals."""
    figure = Figure(figsize=(7.5, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, marker, color in (("training", "o", "0.55"), ("evaluation", "s", "C0")):
        mine = [part for part in parts if part["kind"] == kind]
        at = [(part["first"] + part["last"]) / 2 for part in mine]
        values, lows, highs = zip(*([100 * each for each in part["success"]] for part in mine), strict=True)
        errors = [
            [value - low for value, low in zip(values, lows, strict=True)],
            [high - value for value, high in zip(values, highs, strict=True)],
        ]
        axes.errorbar(at, values, yerr=errors, marker=marker, color=color, capsize=3, label=f"{kind} episodes")
    axes.set(xlabel="iteration", ylabel="success, %", ylim=(None, 101))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", frameon=False)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of examples/finetune_square.py")
    parser.add_argument("--start", required=True, help="what the policy learned from before, in words")
    options = parser.parse_args()
    run = json.loads((options.run / "curve.json").read_text(encoding="utf-8"))
    settings = {name: value for name, value in run["settings"].items() if name != "checkpoint"}
    parts, out = groups(run["curve"]), RESULTS / "finetune"
    content = {
        "start": options.start,
        "settings": settings,
        "curve": run["curve"],
        "groups": parts,
        "provenance": collect_provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    name = f"curve-{settings['task']}"
    for suffix, text in ((".json", json.dumps(content, separators=(",", ":")) + "\n"), (".md", table(parts))):
        with atomic_path(out / f"{name}{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    draw(parts, out / f"{name}.png")
    print(table(parts))


if __name__ == "__main__":
    main()
