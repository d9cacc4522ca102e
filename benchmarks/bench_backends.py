"""What a chunk costs on one CPU thread by sampler and backend: PyTorch, compiled, and the network on OpenVINO.

    python benchmarks/bench_backends.py square tool_hang
    python benchmarks/bench_backends.py square --backends eager inductor openvino --calls 30

All ways take turns within one run, each backend for all samplers alike, few-step ones included. Times are the process's
own (``time.process_time``), which other processes on the machine disturb little. ``network alone`` replays the
evaluations of a sampler's last chunk without anything around them. ``auto`` windows are planned for the backend, see
``specpolicy.tuning``. ONNX Runtime is timed on the network beside the others.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from side_by_side import RESULTS, ROOT, conditions, keep, parameters, ratio, shown, take_turns

from specpolicy import samplers
from specpolicy.config import compose
from specpolicy.evaluation.statistics import mean_interval
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.compiled.openvino_network import OpenVINODenoiser, unchecked_annotations
from specpolicy.speculative.denoiser import PreparedCondition
from specpolicy.utils.extras import require
from specpolicy.utils.files import atomic_path

SAMPLERS = ("ddpm", "ddim10", "ddim5", "asd", "free_block", "recycled", "recycled20", "analytic10_recycled")
AUTO = ("recycled", "recycled20", "analytic10_recycled")
ROWS = (1, 2, 4, 8, 16)
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--backends", nargs="+", default=["eager", "openvino"])
    parser.add_argument("--calls", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task in options.tasks:
        _task(task, options.backends, options.calls)


def _task(task: str, backends: list[str], calls: int) -> None:
    policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / task)
    cond = conditions(policy, max(16, calls + 1))
    ways = {f"{name}, {backend}": way for backend in backends for name, way in _samplers(policy, backend).items()}
    done: dict[str, dict[str, list[float]]] = {name: {"evaluations": [], "rows": [], "window": []} for name in ways}
    replayed: dict[str, list[tuple[int, int]]] = {}
    network = OpenVINODenoiser(policy) if "openvino" not in backends else next(
        each for name, each in ways.items() if name.endswith("openvino")
    ).network(policy)  # fmt: skip

    def sample(name: str) -> Callable[[int], None]:
        def call(number: int) -> None:
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn(1, *policy.event_shape, generator=generator)
            with torch.inference_mode():
                result = ways[name](policy, noise, cond[number % len(cond)][None], [generator])
            done[name]["evaluations"].append(int(result.passes))
            done[name]["rows"].append(int(result.evaluations))
            steps = range(int(result.passes)) if result.start is None else ()
            replayed[name] = [(0, 1) for _ in steps] or _rounds(result)

        return call

    def alone(name: str) -> Callable[[int], None]:
        def call(number: int) -> None:
            with torch.inference_mode():
                ask = network.for_chain(policy.event_shape, cond[number % len(cond)][None])
                for start, rows in replayed.get(name, []):
                    ask(states[:rows], timesteps[start : start + rows])

        return call

    states = np.random.default_rng(0).normal(size=(128, int(np.prod(policy.event_shape))))
    timesteps = np.arange(128) % 100
    turns = {name: sample(name) for name in ways}
    turns |= {f"{name}: network alone": alone(name) for name in ways if name.endswith("openvino")}
    times = {name: list[float]() for name in turns}
    for first in range(0, calls, 2):  # kept as it goes
        begun = {
            name: partial(lambda number, way, add: way(number + add), way=way, add=first) for name, way in turns.items()
        }
        for name, taken in take_turns(
            begun, min(2, calls - first), CPU, int(not first), first, time.process_time
        ).items():
            times[name] += taken
        if len(times["ddpm, " + backends[0]]) > 2:
            content = {"task": task, "parameters": parameters(policy), "clock": "process time", "ways": {}}
            content["ways"] = {name: _row(name, times, done[name], ways[name]) for name in ways}
            keep("backends", task, content, _table(task, content["ways"]), CPU)
    content["network"] = _runtimes(policy, network, cond[:1], 4 * calls)
    keep("backends", task, content, [*_table(task, content["ways"]), *_network_table(content["network"])], CPU)
    _join()


def _samplers(policy: DiffusionPolicy, backend: str) -> dict[str, Any]:
    """Each by its name, and with windows planned for the backend where there are some to plan."""
    asked = {name: name for name in SAMPLERS} | {f"{name} (auto)": name for name in AUTO if backend != "inductor"}
    found = {}
    for label, name in asked.items():
        recipe = instantiate(compose("serve", [f"sampler={name}"]).sampler)
        if label != name:
            recipe = partial(recipe, window="auto")
        named = "auto" if backend == "inductor" else backend
        found[label] = recipe(policy) if backend == "eager" else samplers.compiled(policy, recipe, named)
    return found


def _rounds(result: Any) -> list[tuple[int, int]]:
    """Position and rows of each evaluation of one chain."""
    rounds = list(zip(result.start[:, 0].tolist(), (result.proposed[:, 0] + 1).tolist(), strict=True))
    spare = int(result.passes) - len(rounds)  # evaluations of one row before a draft: those rows are not repeated
    spared = [(start, rows - int(number < spare)) for number, (start, rows) in enumerate(rounds)]
    return [(0, 1)] * spare + [(start, rows) for start, rows in spared if rows]


def _row(name: str, times: dict[str, list[float]], done: dict[str, list[float]], sampler: Any) -> dict[str, Any]:
    label, backend = name.rsplit(", ", 1)
    inner = getattr(sampler, "sampler", sampler)
    same = {base: times[f"{base}, {backend}"] for base in ("ddpm", "ddim10")}
    row = {
        "sampler": label,
        "backend": backend,
        "exact": bool(sampler.exact),
        "calls": len(times[name]),
        "median_ms": float(np.median(times[name])),
        "evaluations": mean_interval(done["evaluations"])._asdict(),
        "rows": mean_interval(done["rows"])._asdict(),
        "window": getattr(inner, "window", None),
        "faster_than": {base: ratio(taken, times[name]) for base, taken in same.items()},
    }
    if f"{label}, eager" in times:
        row["faster_than"]["eager"] = ratio(times[f"{label}, eager"], times[name])
    if alone := times.get(f"{name}: network alone"):
        row["around_the_network"] = 1 - float(np.median(alone)) / row["median_ms"]
    return row


def _table(task: str, ways: dict[str, Any]) -> list[str]:
    first = next(iter(ways.values()))
    lines = [
        f"## {task}",
        "",
        f"Times as fast as the sampler that heads the column on the same backend; {first['calls']} calls, one thread.",
        "",
        "| backend | sampler | distribution | NFE | rows | × ddpm | × ddim10 | × itself, eager | around, % |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in ways.values():
        against = row["faster_than"]
        cells = [shown(against[base]) for base in ("ddpm", "ddim10")]
        cells.append(shown(against["eager"]) if "eager" in against else "–")
        around = f"{100 * row['around_the_network']:.0f}" if "around_the_network" in row else "–"
        lines.append(
            f"| {row['backend']} | `{row['sampler']}` | {'exact' if row['exact'] else '**approximate**'} "
            f"| {shown(row['evaluations'], 1)} | {row['rows']['value']:.0f} | {' | '.join(cells)} | {around} |"
        )
    return lines


class _Network(torch.nn.Module):
    def __init__(self, policy: DiffusionPolicy, cond: torch.Tensor) -> None:
        super().__init__()
        self.policy, self.raw = policy, cond

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.policy(x, timestep, PreparedCondition(self.raw, rows))


def _runtimes(policy: DiffusionPolicy, network: OpenVINODenoiser, cond: torch.Tensor, calls: int) -> dict[str, Any]:
    """The network alone by its rows: PyTorch, OpenVINO, and ONNX Runtime where it is installed."""
    runtime: Any = require("onnxruntime", "export")
    with torch.inference_mode():
        rows = policy.prepare_condition(cond).rows.clone()
        x = torch.randn(max(ROWS), *policy.event_shape, generator=torch.Generator().manual_seed(0))
        timestep = torch.arange(len(x)) % 100
    many, buffer = rows.expand(len(x), -1).contiguous(), io.BytesIO()
    with warnings.catch_warnings(), unchecked_annotations(), torch.no_grad():
        warnings.simplefilter("ignore")
        names, outputs = ["x", "timestep", "rows"], ["output"]
        torch.onnx.export(
            _Network(policy, cond.clone()), (x[:2].clone(), timestep[:2].clone(), many[:2].clone()), buffer,
            dynamo=False, opset_version=17, input_names=names, output_names=outputs,
            dynamic_axes={name: {0: "n"} for name in [*names, *outputs]},
        )  # fmt: skip
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = runtime.InferenceSession(buffer.getvalue(), settings, providers=["CPUExecutionProvider"])

    def onnx(count: int) -> torch.Tensor:
        inputs = zip(names, (part[:count].numpy() for part in (x, timestep, many)), strict=True)
        return torch.from_numpy(session.run(None, dict(inputs))[0])

    def torch_way(denoiser: Any, count: int) -> torch.Tensor:
        with torch.inference_mode():
            return denoiser(x[:count], timestep[:count], PreparedCondition(cond.expand(count, -1), many[:count]))

    asked: dict[str, Callable[[int], torch.Tensor]] = {
        "PyTorch": partial(torch_way, policy), "OpenVINO": partial(torch_way, network), "ONNX Runtime": onnx
    }  # fmt: skip
    worst = max(float((way(8) - asked["PyTorch"](8)).abs().max()) for way in asked.values())
    ways = {
        f"{name}, {n}": partial(lambda _, way, n: way(n), way=way, n=n) for name, way in asked.items() for n in ROWS
    }
    times = take_turns(ways, calls, CPU, clock=time.process_time)
    found = {
        name: {str(n): ratio(times[f"PyTorch, {n}"], times[f"{name}, {n}"]) for n in ROWS}
        for name in asked
        if name != "PyTorch"
    }
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    return {"faster_than_torch": found, "median_ms": medians, "calls": calls, "largest_difference": worst}


def _network_table(network: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"The network alone, times as fast as in PyTorch by its rows; {network['calls']} calls each:",
        "",
        f"| runtime | {' | '.join(map(str, ROWS))} |",
        f"| --- | {' | '.join(['---:'] * len(ROWS))} |",
    ]
    for name, ratios in network["faster_than_torch"].items():
        lines.append(f"| {name} | {' | '.join(shown(ratios[str(n)]) for n in ROWS)} |")
    return lines


def _join() -> None:
    """One table of all tasks, as the documents show it."""
    parts = [json.loads(path.read_text()) for path in sorted((RESULTS / "backends").glob("*.json"))]
    lines = []
    for part in parts:
        about = part["provenance"]
        lines += [*_table(part["task"], part["ways"])[0:1], "", f"On {about['device']}, {part['clock']}."]
        lines += [
            *_table(part["task"], part["ways"])[1:],
            *(_network_table(part["network"]) if "network" in part else []),
            "",
        ]
    with atomic_path(RESULTS / "backends" / "table.md") as temporary:
        temporary.write_text("\n".join(lines).replace("## ", "### ").strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
