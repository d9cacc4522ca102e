"""Put the measured tables into the documents that quote them; ``--check`` only compares.

A document marks the place with ``<!-- NAME -->`` and ``<!-- /NAME -->``; the table is
``benchmarks/results/NAME/table.md``, and for ``headline`` the one over all tasks, ``benchmarks/results/table.md``.
Times in milliseconds are quoted from GPUs only: those of a CPU say more about the machine than about the sampler, so
that only their ratios are shown.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("results.md", "control.md")),
    *sorted(ROOT.glob("checkpoints/*/README.md")),
]
RESULTS = ROOT / "benchmarks" / "results"


def quoted(folder: Path) -> str:
    """The folder's table as the documents show it: the first, where one of each task follows."""
    table = (folder / "table.md").read_text(encoding="utf-8").split("\n## ")[0].strip()
    latency = folder / "latency.json"
    if latency.exists() and json.loads(latency.read_text())["device"].startswith("cuda"):
        return table
    lines, quotes = table.splitlines(), []
    shown: list[int] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following.startswith("| ---"):  # this line is a table's header
            shown = [i for i, name in enumerate(line.split("|")) if not name.strip().endswith(" ms")]
        quotes.append("|".join(line.split("|")[i] for i in shown) if line.startswith("|") else line)
    return "\n".join(quotes)


IN_README = ("ddpm", "recycled", "free_block", "analytic10_recycled", "ddim10", "ddim5")


def short_table() -> str:
    """Six samplers over all tasks: what a reader of the README decides from."""
    rows = {row["sampler"]: row for row in json.loads((RESULTS / "table.json").read_text())["overall"]}
    lines = [
        "| sampler | distribution | success, % [95 %] | sequential NFE | speed, × ddpm [95 %] |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name in IN_README:
        row = rows[name]
        success, low, high = (100 * each for each in row["success"])
        speed = "1" if row["speed_up"] is None else "{:.1f} [{:.1f}, {:.1f}]".format(*row["speed_up"])
        lines.append(
            f"| `{name}` | {'exact' if row['exact'] else '**approximate**'} | {success:.1f} [{low:.1f}, {high:.1f}] "
            f"| {row['nfe']:.1f} | {speed} |"
        )
    return "\n".join(lines)


def filled(text: str) -> str:
    """``text`` with every marked place holding the table of its results folder."""
    folders = {"headline": RESULTS, **{path.name: path for path in sorted(RESULTS.iterdir())}}
    for name, folder in folders.items():
        if not (folder / "table.md").exists():
            continue
        table = quoted(folder)
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
    place = re.compile(r"(<!-- readme -->\n).*?(<!-- /readme -->)", re.DOTALL)
    return place.sub(lambda match: f"{match[1]}{short_table()}\n{match[2]}", text)


def main() -> int:
    stale = [document for document in DOCUMENTS if filled(document.read_text(encoding="utf-8")) != document.read_text()]
    for document in stale:
        print(f"{document.name} does not show the measured tables")
        if "--check" not in sys.argv:
            document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")
            print(f"{document.name} rewritten")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
