"""From which noise level should a chunk start that is warm-started from the last one? A scan, on seeds of its own.

    python benchmarks/bench_warm_start.py
    python benchmarks/bench_warm_start.py --task pusht --steps 2 4 --start 19 39 59 79 --seeds 200000:200020

A results folder for each setting, resumable, under ``benchmarks/results/warm_start``, and one table of them all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from side_by_side import ROOT

from specpolicy.commands.evaluate import evaluate
from specpolicy.utils.files import atomic_path

OUT = ROOT / "benchmarks" / "results" / "warm_start"


def row(folder: Path) -> str | None:
    """The table's line of one setting; None if it has not been played."""
    path = folder / "table.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))[0]
    recipe = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["samplers"][result["sampler"]]["recipe"]
    score = "{:.3f} [{:.3f}, {:.3f}]".format(*result["score"]) if result["score"] else "–"
    return (
        f"| {folder.name} | {recipe['num_inference_steps']} | {recipe['start_timestep']} "
        f"| {result['successes']}/{result['episodes']} | {score} | {result['nfe']:.1f} |"
    )


def table(out: Path) -> str:
    """Render markdown: a line for each setting that has been played."""
    lines = [
        "| task | steps | start timestep | succeeded | score [95 %] | NFE / chunk |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *filter(None, (row(folder) for setting in sorted(out.iterdir()) for folder in sorted(setting.glob("*/")))),
    ]
    caption = (
        "Warm-started DDIM, approximate. Score: mean sum of rewards of an episode, with Student's interval over seeds. "
        "NFE: sequential network evaluations, ten in an episode's first chunk."
    )
    return "\n".join(lines) + f"\n\n{caption}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pusht")
    parser.add_argument("--steps", type=int, nargs="*", default=[2], help="none: only write the table")
    parser.add_argument("--start", type=int, nargs="*", default=[19, 39, 59, 79])
    parser.add_argument("--seeds", default="200000:200020", help="others than those that samplers are compared on")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    for steps in options.steps:
        for start in options.start:
            evaluate(
                [
                    f"task={options.task}", "sampler=warm2", f"sampler.num_inference_steps={steps}",
                    f"sampler.start_timestep={start}", f"seeds={options.seeds}", "num_envs=10", "latency_calls=0",
                    f"out={options.out / f'{steps}-from-{start}'}",
                ]
            )  # fmt: skip
    text = table(options.out)
    with atomic_path(options.out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
