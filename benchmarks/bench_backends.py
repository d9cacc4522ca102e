"""What a chunk costs on one CPU thread by sampler and backend: PyTorch, compiled, and the network on OpenVINO.

    python benchmarks/bench_backends.py square tool_hang --calls 20
    python benchmarks/bench_backends.py square --backends eager openvino     # nothing to compile, which takes minutes
    python benchmarks/bench_backends.py square_transformer tool_hang --backends openvino --folder backends_headline \
        --samplers ddpm asd free_block recycled analytic10_recycled ddim10 ddim5 warm2 --calls 20

All ways take turns within one run, each backend for all samplers alike, few-step ones included; every chunk has been
sampled once before it is timed, so that nothing is compiled meanwhile. Times are the process's
own (``time.process_time``), which other processes on the machine disturb little. A run that was interrupted goes on
where it was: every turn has all ways in it, so that ratios stay paired. ``network alone`` replays the
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
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from side_by_side import RESULTS, ROOT, conditions, keep, parameters, ratio, shown, take_turns

from specpolicy import compile_sampler, samplers
from specpolicy.config import compose
from specpolicy.evaluation.statistics import mean_interval
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.protocols import ChunkReusingSampler, PreviousChunk
from specpolicy.speculative.compiled.openvino_network import OpenVINODenoiser, unchecked_annotations
from specpolicy.speculative.denoiser import PreparedCondition
from specpolicy.tuning import AutoWindow
from specpolicy.tuning.store import WindowsError
from specpolicy.utils.digests import source_digest
from specpolicy.utils.extras import require
from specpolicy.utils.files import atomic_path
from specpolicy.utils.provenance import cpu_model

SAMPLERS = ("ddpm", "ddim10", "ddim5", "asd", "free_block", "recycled", "recycled20", "analytic10_recycled")
REUSING = ("warm2", "warm4")  # start from the chunk before
AUTO = ("recycled", "recycled20", "analytic10_recycled")
ROWS = (1, 2, 4, 8, 16)
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--backends", nargs="+", default=["eager", "inductor", "openvino"])
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=(*SAMPLERS, *REUSING))
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--folder", default="backends", help="under benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task in options.tasks:
        _task(task, options.folder, options.backends, options.samplers, options.calls)


def _task(task: str, folder: str, backends: list[str], names: list[str], calls: int) -> None:
    policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / task)
    cond = conditions(policy, max(16, calls))
    ways = {
        f"{name}, {backend}": way for backend in backends for name, way in _samplers(policy, backend, names).items()
    }
    chunks = _Chunks(policy, cond, ways)
    turns = {name: partial(chunks.sample, name) for name in ways}
    turns |= {f"{name}: network alone": partial(chunks.evaluate, name) for name in ways if name.endswith("openvino")}
    content = _begun(folder, task, ways, turns) or {
        "task": task,
        "parameters": parameters(policy),
        "clock": "process time",
        "of": _identity(ways),
        "ways": {},
        "times_ms": {name: [] for name in turns},
        "evaluations_and_rows": {name: [] for name in ways},
    }
    times, counts = content["times_ms"], content["evaluations_and_rows"]
    print(
        f"{task}: {len(ways)} ways are ready, {len(next(iter(times.values())))} of {calls} turns are done", flush=True
    )
    for first in range(len(next(iter(times.values()))), calls, 2):  # kept as it goes
        numbers = range(first, min(first + 2, calls))
        for name in ways:
            for number in numbers:
                chunks.sample(name, number)
        now = {
            name: partial(lambda number, way, add: way(number + add), way=way, add=first) for name, way in turns.items()
        }
        for name, taken in take_turns(now, len(numbers), CPU, 0, first, time.process_time).items():
            times[name] += [round(each, 4) for each in taken]
        for name in ways:
            results = (chunks.done[name][number] for number in numbers)
            counts[name] += [[int(each.passes), int(each.evaluations)] for each in results]
        content["ways"] = {name: _row(name, content, ways[name]) for name in ways}
        keep(folder, task, content, _table(content), CPU)
    if "network" not in content:
        content["network"] = _runtimes(policy, chunks.network, cond[:1], 2 * calls)
    keep(folder, task, content, _table(content), CPU)
    _join(folder)


def _identity(ways: dict[str, Any]) -> dict[str, Any]:
    """What times that are compared must have in common."""
    windows = {name: getattr(getattr(way, "sampler", way), "window", None) for name, way in ways.items()}
    versions = {name: version(name) for name in ("torch", "openvino", "numpy")}
    return {"windows": windows, "versions": versions, "cpu": cpu_model(), "source": source_digest("specpolicy")}


def _begun(folder: str, task: str, ways: dict[str, Any], turns: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier run of the same ways with the same software on the same processor, which goes on."""
    path = RESULTS / folder / f"{task}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = found.get("of") == _identity(ways) and list(found["times_ms"]) == list(turns)
    return found if same else None


class _Chunks:
    """Chunks by number: the same noise, condition and random numbers for every sampler and backend."""

    def __init__(self, policy: DiffusionPolicy, cond: torch.Tensor, ways: dict[str, Any]) -> None:
        self.policy, self.cond, self.ways = policy, cond, ways
        runtimes = [
            getattr(each, "first", each).network(policy) for name, each in ways.items() if name.endswith("openvino")
        ]
        self.network: OpenVINODenoiser = runtimes[0] if runtimes else OpenVINODenoiser(policy)
        self.done: dict[str, dict[int, Any]] = {name: {} for name in ways}
        self._states = np.random.default_rng(0).normal(size=(128, int(np.prod(policy.event_shape))))

    def sample(self, name: str, number: int) -> None:
        """Sample a chunk."""
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(1, *self.policy.event_shape, generator=generator)
        way = self.ways[name]
        if isinstance(way, ChunkReusingSampler):  # all chunks but an episode's first
            before = torch.randn(self.policy.event_shape, generator=generator).clamp(-1, 1)
            way = way.continuing([PreviousChunk(before, self.policy.config.n_action_steps)])
        with torch.inference_mode():
            cond = self.cond[number % len(self.cond)][None]
            self.done[name][number] = way(self.policy, noise, cond, [generator])

    def evaluate(self, name: str, number: int) -> None:
        """Evaluate the network on as many rows as that chunk took, one evaluation after another."""
        with torch.inference_mode():
            ask = self.network.for_chain(self.policy.event_shape, self.cond[number % len(self.cond)][None])
            for rows in _rows_of(self.done[name][number]):
                ask(self._states[:rows], _TIMESTEPS[:rows])


_TIMESTEPS = np.arange(128) % 100


def _rows_of(result: Any) -> list[int]:
    """Rows of each evaluation of one chain."""
    if result.start is None:
        return [1] * int(result.passes)
    rounds = (result.proposed[:, 0] + 1).tolist()
    spare = int(result.passes) - len(rounds)  # evaluations of one row before a draft, which is not repeated in it
    return [1] * spare + [rows - int(number < spare) for number, rows in enumerate(rounds)]


def _samplers(policy: DiffusionPolicy, backend: str, names: list[str]) -> dict[str, Any]:
    """Each by its name, and with windows planned for the backend where there are some to plan."""
    asked = {name: name for name in names}
    asked |= {f"{name} (auto)": name for name in AUTO if name in names and backend == "openvino"}
    found = {}
    for label, name in asked.items():
        recipe = instantiate(compose("serve", [f"sampler={name}"]).sampler)
        runtime = "openvino" if backend == "openvino" else None
        try:
            made = recipe(policy, window=AutoWindow(runtime)) if label != name else recipe(policy)
        except WindowsError as error:  # nothing is known of what is accepted
            print(f"left out: {label}: {error}", flush=True)
            continue
        if backend == "inductor":
            made = samplers.compiled(policy, recipe, "auto")
        found[label] = made if runtime is None else compile_sampler(made, "openvino")
    return found


def _row(name: str, content: dict[str, Any], sampler: Any) -> dict[str, Any]:
    label, backend = name.rsplit(", ", 1)
    inner, times, counts = getattr(sampler, "sampler", sampler), content["times_ms"], content["evaluations_and_rows"]
    same = {base: times[f"{base}, {backend}"] for base in ("ddpm", "ddim10")}
    row = {
        "sampler": label,
        "backend": backend,
        "exact": bool(sampler.exact),
        "calls": len(times[name]),
        "median_ms": float(np.median(times[name])),
        "evaluations": mean_interval([float(each) for each, _ in counts[name]])._asdict(),
        "rows": mean_interval([float(each) for _, each in counts[name]])._asdict(),
        "window": getattr(inner, "window", None),
        "faster_than": {base: ratio(taken, times[name]) for base, taken in same.items()},
    }
    if f"{label}, eager" in times:
        row["faster_than"]["eager"] = ratio(times[f"{label}, eager"], times[name])
    if alone := times.get(f"{name}: network alone"):
        row["around_the_network"] = 1 - float(np.median(alone)) / row["median_ms"]
    return row


def _table(content: dict[str, Any]) -> list[str]:
    ways = content["ways"]
    first = next(iter(ways.values()))
    lines = [
        f"### {content['task']}",
        "",
        f"Times as fast as the sampler that heads the column on the same backend; {first['calls']} chunks each, one "
        "thread, process time.",
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
    return [*lines, *(_network_table(content["network"]) if "network" in content else [])]


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


def _join(folder: str) -> None:
    """One table of all tasks, as the documents show it."""
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / folder).glob("*.json"))]
    lines = [line for part in parts for line in (*_table(part), "")]
    with atomic_path(RESULTS / folder / "table.md") as temporary:
        temporary.write_text("\n".join(lines).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
