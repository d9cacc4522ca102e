"""Does it pay to evaluate the beginning of a window first, and the rest only if all of it is kept?

    python benchmarks/bench_two_bites.py square tool_hang

Such a window in two bites takes the network evaluations and rows of two rounds whose windows add up to it, and skips
the second where the first ends in a rejection. What differs is the second draft: two rounds make it anew, from the x̂0
that the first evaluation found. Both are exact, since a causal verifier decides step by step. Every way is
followed for the same chunks and random numbers, with the network on OpenVINO; the fastest single window and the fastest
pair of bites are chosen on the first half of the chunks and compared on the second, beside windows planned for the
price of a row (``auto``). Times are the process's own, in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from side_by_side import RESULTS, ROOT, conditions, keep, ratio, shown, take_turns

from specpolicy import compile_sampler
from specpolicy.config import compose
from specpolicy.evaluation.statistics import mean_interval
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.single_chain_rounds import SingleChainRounds
from specpolicy.tuning import AutoWindow

SINGLE = {"recycled": (8, 12, 16, 24), "recycled20": (3, 4, 6, 8, 12), "analytic10_recycled": (2, 3, 5, 9)}
BITES = {
    "recycled": ((8, 16), (8, 24), (12, 24)),
    "recycled20": ((2, 6), (3, 6), (3, 8), (4, 8), (4, 12), (6, 12)),
    "analytic10_recycled": ((2, 5), (3, 6), (3, 9), (5, 9)),
}
CPU = torch.device("cpu")


class _Known:
    """A network that has been asked already."""

    def __init__(self, x0: NDArray[np.float64]) -> None:
        self.found = x0

    def x0(self, states: NDArray[np.float64], k: int) -> NDArray[np.float64]:
        return self.found


class TwoBites(SingleChainRounds):
    """Rounds whose windows are evaluated in two parts, the second only if the first is kept whole."""

    first: int

    def _verify(
        self, at: Any, drafted: Any, length: int, network: Any, uniform: torch.Tensor, fresh: Any, start_known: bool
    ) -> None:
        first, known = self.first, int(start_known)
        if length > first:
            target = np.empty_like(drafted.states[: first + 1])
            if known:
                target[0] = at.last_eval_x0
            target[known:] = network.x0(drafted.states[known : first + 1], at.k + known)
            accepted, _ = self._judge(at.k, drafted, target, first, uniform, fresh)
            if accepted == first:
                rest = network.x0(drafted.states[first + 1 : length + 1], at.k + first + 1)
                target = np.concatenate([target, rest])
            else:
                length = first
            network, start_known = _Known(target), False
        super()._verify(at, drafted, length, network, uniform, fresh, start_known)


def ways(policy: DiffusionPolicy, name: str) -> dict[str, Any]:
    """Samplers on OpenVINO by what their windows are."""
    recipe = instantiate(compose("serve", [f"sampler={name}"]).sampler)
    found = {f"window {window}": recipe(policy, window=window) for window in SINGLE[name]}
    for first, window in BITES[name]:
        sampler = recipe(policy, window=window)
        if not sampler.verifier.causal:
            raise SystemExit(f"{name}: only a causal verifier decides about the first bite without the second")
        usual = sampler._single(torch.zeros(1, *policy.event_shape))
        sampler._host = TwoBites(usual.rounds, sampler.table)
        sampler._host.first = first
        found[f"bites {first} + {window - first}"] = sampler
    found["auto"] = recipe(policy, window=AutoWindow("openvino"))
    return {label: compile_sampler(sampler, "openvino") for label, sampler in found.items()}


def measure(policy: DiffusionPolicy, name: str, calls: int) -> dict[str, Any]:
    """Every way on the same chunks: evaluations, rows, milliseconds."""
    cond, samplers = conditions(policy, max(16, calls)), ways(policy, name)
    counts: dict[str, dict[int, tuple[int, int]]] = {label: {} for label in samplers}

    def sample(number: int, label: str) -> None:
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(1, *policy.event_shape, generator=generator)
        with torch.inference_mode():
            result = samplers[label](policy, noise, cond[number % len(cond)][None], [generator])
        counts[label][number] = int(result.passes), int(result.evaluations)

    turns = {label: partial(sample, label=label) for label in samplers}
    for number in range(calls):  # every model is compiled before it is timed
        for label in turns:
            turns[label](number)
    times = take_turns(turns, calls, CPU, 0, clock=time.process_time)
    half = calls // 2
    fastest = {
        kind: min(
            (label for label in times if label.startswith(kind)), key=lambda label: np.median(times[label][:half])
        )
        for kind in ("window", "bites")
    }
    return {
        "sampler": name,
        "calls": calls,
        "ways": {
            label: {
                "evaluations": mean_interval([float(counts[label][number][0]) for number in range(calls)])._asdict(),
                "rows": mean_interval([float(counts[label][number][1]) for number in range(calls)])._asdict(),
                "median_ms": float(np.median(times[label])),
            }
            for label in samplers
        },
        "fastest": fastest,
        "bites_over_single": ratio(times[fastest["bites"]][half:], times[fastest["window"]][half:]),
        "bites_over_auto": ratio(times[fastest["bites"]][half:], times["auto"][half:]),
    }


def table(tasks: dict[str, Any]) -> list[str]:
    """A line for each task and sampler."""
    lines = [
        "| task | sampler | single window: NFE | rows | two bites: NFE | rows | time, bites / single [95 %] "
        "| bites / auto [95 %] | n |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task, found in tasks.items():
        for row in found:
            cells = []
            for kind in ("window", "bites"):
                label = row["fastest"][kind]
                way = row["ways"][label]
                cells += [f"{label}: {shown(way['evaluations'], 1)}", f"{way['rows']['value']:.0f}"]
            ratios = (shown(row[name]) for name in ("bites_over_single", "bites_over_auto"))
            lines.append(
                f"| {task} | `{row['sampler']}` | {' | '.join(cells)} | {' | '.join(ratios)} "
                f"| {row['calls'] - row['calls'] // 2} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--calls", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "two_bites" / "table.json"
    tasks: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else {}
    for task in options.tasks:
        policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / task)
        tasks[task] = []
        for name in SINGLE:
            tasks[task].append(measure(policy, name, options.calls))
            keep("two_bites", "table", {"clock": "process time", "tasks": tasks}, table(tasks), CPU)


if __name__ == "__main__":
    main()
