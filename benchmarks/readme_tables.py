"""Put the measured tables into the documents that quote them; ``--check`` only compares, ``--again`` first makes the
tables again from their episodes and timed calls, after a change of what tables say.

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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("results.md", "measurements.md", "control.md", "finetuning.md")),
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
    return unbroken("\n".join(quotes))


def unbroken(table: str) -> str:
    """``table`` with intervals that stay on one line: a no-break space after the comma."""
    return re.sub(r"\[(\S+), (\S+)\]", "[\\1,\u00a0\\2]", table)


def make_tables_again() -> None:
    """Write each table of an evaluation anew, rows in their order; those of control loops need traces, and stay."""
    from specpolicy.control.latency_log import LatencyRun
    from specpolicy.evaluation.comparison import Conclusion
    from specpolicy.evaluation.manifest import manifest_precision
    from specpolicy.evaluation.results import read_results
    from specpolicy.evaluation.summary import summarize
    from specpolicy.evaluation.tables import json_table, markdown_table
    from specpolicy.evaluation.task_average import json_overall, markdown_overall, summarize_tasks

    conclusions: dict[Path, dict[str, Conclusion]] = {RESULTS: {}, RESULTS / "sealed": {}}
    for path in sorted(RESULTS.rglob("manifest.json")):
        folder, text = path.parent, path.with_name("table.md")
        records, manifest = read_results(folder)
        if not text.exists() or any("executor" in entry for entry in manifest.samplers.values()):
            continue
        shown = [
            line.split("|")[1].strip() for line in text.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
        ]
        exact = {name: manifest.samplers[name]["exact"] for name in shown[2:]}
        latency = LatencyRun.read(folder / "latency.json") if (folder / "latency.json").exists() else None
        precision = {name: manifest_precision(manifest.samplers[name]) for name in exact}
        mine = [record for record in records if record.sampler in exact]
        rows = summarize(mine, latency, exact, precision=precision)
        text.write_text(markdown_table(rows), encoding="utf-8")
        if (folder / "table.json").exists():
            (folder / "table.json").write_text(json_table(rows), encoding="utf-8")
        if folder.parent in conclusions:  # others hold runs of the same tasks, too
            conclusions[folder.parent][folder.name] = Conclusion(mine, rows)
    for folder, found in conclusions.items():
        tasks = {task: found[task] for task in ROBOMIMIC if task in found}
        overall = summarize_tasks(tasks)
        (folder / "table.md").write_text(markdown_overall(overall, tasks), encoding="utf-8")
        (folder / "table.json").write_text(json_overall(overall, tasks), encoding="utf-8")


ROBOMIMIC = ("square", "transport", "tool_hang")
IN_README = ("ddpm", "asd", "free_block", "recycled", "analytic10_recycled", "ddim10", "ddim5", "warm2")


def short_table() -> str:
    """Eight samplers on sealed seeds: what a reader of the README decides from."""
    overall = json.loads((RESULTS / "sealed" / "table.json").read_text(encoding="utf-8"))
    rows = {row["sampler"]: row for row in overall["overall"]}
    speeds = [_speeds(task) for task in ("square", "tool_hang")]
    lines = [
        "| sampler | success, % [95 %] | NFE | speed, × `ddpm`: Square's U-Net, Tool Hang |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in IN_README:
        row = rows[name]
        success, low, high = (100 * each for each in row["success"])
        speed = ", ".join(f"{each[name]:.1f}" if name in each else "–" for each in speeds)
        mark = "" if row["exact"] else ", **approximate**"
        lines.append(f"| `{name}`{mark} | {success:.1f} [{low:.1f}, {high:.1f}] | {row['nfe']:.1f} | {speed} |")
    return "\n".join(lines)


def _speeds(task: str) -> dict[str, float]:
    """How many times as fast as ``ddpm`` each sampler is, all of them on OpenVINO."""
    ways = json.loads((RESULTS / "backends" / f"{task}.json").read_text(encoding="utf-8"))["ways"].values()
    return {way["sampler"]: way["faster_than"]["ddpm"]["value"] for way in ways if way["backend"] == "openvino"}


# What a user should take, from the figures alone: the chains in the order in which they are preferred.
CHAINS = (
    ("100 steps", lambda name, exact: exact and "20" not in name and "analytic" not in name),
    ("20 steps", lambda name, exact: exact and "20" in name),
    ("10 analytic steps", lambda name, exact: exact and "analytic" in name),
    ("approximate", lambda name, exact: not exact),
)
BUDGETS = (3, 4.5, 8, 15)
HEADLINE = ("square", "transport", "tool_hang", "pusht")


def choices_table() -> str:
    """For each task and time budget the nearest chain to 100 steps that fits, and its fastest exact sampler."""
    lines = [
        f"| task | {' | '.join(f'1/{budget:g} of the time of `ddpm`' for budget in BUDGETS)} |",
        f"| --- | {' | '.join(['---'] * len(BUDGETS))} |",
    ]
    for task in HEADLINE:
        rows = json.loads((RESULTS / task / "table.json").read_text(encoding="utf-8"))
        lines.append(f"| {task} | {' | '.join(chosen(rows, budget) for budget in BUDGETS)} |")
    return "\n".join(lines)


def chosen(rows: list[dict[str, Any]], budget: float) -> str:
    """A sampler's name, with its success, of the chain that comes first within the budget."""
    fitting = [
        row
        for row in rows
        if row["best"] and row["verdict"] != "inferior" and row["latency"] and row["latency"]["speed_up"]
        and row["latency"]["speed_up"][0] >= budget
    ]  # fmt: skip
    for chain, belongs in CHAINS:
        mine = [row for row in fitting if belongs(row["sampler"], row["exact"])]
        if mine:
            choose = min if chain == "approximate" else max  # an approximate one gets as many steps as fit
            row = choose(mine, key=lambda row: row["latency"]["speed_up"][0])
            success, low, high = (100 * each for each in row["success"])
            mark = chain if chain != "approximate" else "**approximate**"
            return f"`{row['sampler']}`, {mark}: {success:.0f} [{low:.0f}, {high:.0f}], {row['verdict']}"
    return "none"


def verdicts_table() -> str:
    """What the committed episodes show of every exact sampler at the margin, task by task."""
    names = list(dict.fromkeys(row["sampler"] for task in HEADLINE for row in task_rows(task) if row["exact"]))
    lines = [f"| exact sampler | {' | '.join(HEADLINE)} |", f"| --- | {' | '.join(['---'] * len(HEADLINE))} |"]
    for name in names[1:]:
        cells = []
        for task in HEADLINE:
            row = next((row for row in task_rows(task) if row["sampler"] == name), None)
            if row is None or row["verdict"] is None:
                cells.append("–")
                continue
            value, low, high = (100 * each for each in row["difference"])
            cells.append(f"{row['verdict']}: {value:+.1f} [{low:+.1f}, {high:+.1f}], {row['pairs']} pairs")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def task_rows(task: str) -> list[dict[str, Any]]:
    """Rows of a task's table."""
    return list(json.loads((RESULTS / task / "table.json").read_text(encoding="utf-8")))


WITH_WARM = ("ddpm20", "recycled20", "analytic10_recycled", "ddim10", "ddim5", "ddim2", "warm4", "warm2")


def warm_table() -> str:
    """Few-step DDIM from the last chunk beside others over the same seeds, by task."""
    lines = [
        "| task | sampler | succeeded | success, % [95 %] | score [95 %] | steps to success | NFE |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task in HEADLINE:
        path = RESULTS / "half_precision" / task / "table.json"
        if not path.exists():
            continue
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows if any(each["sampler"] == "warm2" for each in rows) else []:
            if row["sampler"] in WITH_WARM:
                value, low, high = (100 * each for each in row["success"])
                shown = [f"{value:.0f} [{low:.0f}, {high:.0f}]"]
                scored, steps = row["score"], row["steps"]
                shown.append("–" if scored is None else "{:.3f} [{:.3f}, {:.3f}]".format(*scored))
                shown.append("–" if steps is None else "{:.0f} [{:.0f}, {:.0f}]".format(*steps))
                kind = "" if row["exact"] else " (**approximate**)"
                lines.append(
                    f"| {task} | `{row['sampler']}`{kind} | {row['successes']}/{row['episodes']} | "
                    f"{' | '.join(shown)} | {row['nfe']:.1f} |"
                )
    return "\n".join(lines)


def sealed_tables() -> str:
    """What was found on sealed seeds, a table for each task."""
    folders = sorted(path.parent for path in (RESULTS / "sealed").glob("*/table.md"))
    return "\n\n".join(f"**{folder.name}**\n\n{quoted(folder)}" for folder in folders)


def latency_choices_table() -> str:
    """For each task on a running robot: success at recorded latencies, of the best exact sampler and of the best."""
    cells = json.loads((RESULTS / "reality" / "table.json").read_text(encoding="utf-8"))
    lines = [
        "| task | `ddpm`, playing on | best exact sampler | best of all | latency that costs a tenth of success |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task in ROBOMIMIC:
        recorded = [cell for cell in cells if cell["task"] == task and cell["kind"] == "recorded"]
        exact = [cell for cell in recorded if not cell["sampler"].startswith(("ddim", "warm"))]
        ddpm = next(cell for cell in exact if cell["sampler"] == "ddpm" and cell["executor"] == "asynchronous")
        injected = sorted(
            (cell["latency_ms"], cell["percent"][0])
            for cell in cells
            if (cell["task"], cell["kind"], cell["executor"]) == (task, "injected", "asynchronous")
        )
        costly = next((f"{ms:g} ms" for ms, percent in injected if percent < 0.9 * injected[0][1]), "none injected")
        lines.append(f"| {task} | {_played(ddpm)} | {_best(exact)} | {_best(recorded)} | {costly} |")
    return "\n".join(lines)


def _best(cells: list[dict[str, Any]]) -> str:
    return _played(max(cells, key=lambda cell: (cell["successes"], -cell["latency_ms"])))


def _played(cell: dict[str, Any]) -> str:
    low, high = cell["percent"][1:]
    mark = " (**approximate**)" if cell["sampler"].startswith(("ddim", "warm")) else ""
    return (
        f"`{cell['sampler']}`{mark}, {cell['executor']}: {cell['successes']}/{cell['episodes']} [{low:.0f}, {high:.0f}]"
    )


def filled(text: str) -> str:
    """``text`` with every marked place holding the table of its results folder."""
    folders = {"headline": RESULTS, **{path.name: path for path in sorted(RESULTS.iterdir())}}
    for name, folder in folders.items():
        if not (folder / "table.md").exists():
            continue
        table = quoted(folder)
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
    made = {
        "readme": short_table,
        "verdicts": verdicts_table,
        "choices": choices_table,
        "latency choices": latency_choices_table,
        "warm": warm_table,
        "sealed": sealed_tables,
        "finetune": lambda: (RESULTS / "finetune" / "throughput-square.md").read_text(encoding="utf-8").strip(),
        "learning curve": lambda: (RESULTS / "finetune" / "curve-square.md").read_text(encoding="utf-8").strip(),
    }
    for name, make in made.items():
        if f"<!-- {name} -->" in text:
            place, table = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL), unbroken(make())
            text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    if "--again" in sys.argv:
        make_tables_again()
    stale = [document for document in DOCUMENTS if filled(document.read_text(encoding="utf-8")) != document.read_text()]
    for document in stale:
        print(f"{document.name} does not show the measured tables")
        if "--check" not in sys.argv:
            document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")
            print(f"{document.name} rewritten")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
