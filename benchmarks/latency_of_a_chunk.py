"""How long does a robot wait for a chunk, whatever computes it? Everything side by side, in one run.

    python benchmarks/latency_of_a_chunk.py square
    python benchmarks/latency_of_a_chunk.py tool_hang --device cuda --calls 100

Batch 1 is what a robot waits for; other batch sizes are timed eagerly. Rivals are treated as well as ours: the plain
diffusers loop as users run it, the same chains compiled (on a GPU captured whole as one CUDA graph), few-step DDIM
likewise, and ParaDiGMS. Ratios are against the compiled DDPM-100 and the compiled DDIM-10 and DDIM-5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from picard import PicardSampler
from side_by_side import ROOT, conditions, keep, parameters, ratio, shown, take_turns

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    FrozenDrafter,
    ReflectionVerifier,
    ReverseProcess,
    SchedulerSampler,
    recipes,
)
from specpolicy.evaluation.statistics import mean_interval
from specpolicy.policies import DiffusionPolicy
from specpolicy.progress import progress_bar
from specpolicy.speculative.compiled import compile_sampler

BASES = ("ddpm, compiled", "ddim10, compiled", "ddim5, compiled")


def eager(policy: DiffusionPolicy) -> dict[str, Any]:
    """Samplers by name, as they come."""
    ddpm100 = policy.scheduler
    process = ReverseProcess.from_scheduler(ddpm100, 100)
    block = BlockVerifier()
    return {
        "diffusers loop, DDPM-100": SchedulerSampler(ddpm100, 100),
        "ddpm": recipes.sequential(policy, 100),
        "ddpm20": recipes.sequential(policy, 20),
        "ddim10": recipes.ddim(policy, 10),
        "ddim5": recipes.ddim(policy, 5),
        "ParaDiGMS, window 25, tolerance 0.1": PicardSampler(process),
        "asd, window 24": recipes.speculative(policy, 100, FrozenDrafter(), ReflectionVerifier(), 24),
        "free reflection, window 24": recipes.speculative(policy, 100, FreeDrafter(), ReflectionVerifier(), 24),
        "frozen block, window 24": recipes.speculative(policy, 100, FrozenDrafter(), block, 24),
        "free block, window 24": recipes.speculative(policy, 100, FreeDrafter(), block, 24),
        "free block, window 40": recipes.speculative(policy, 100, FreeDrafter(), block, 40),
        "linear block, window 24": recipes.linear(policy, 100, block, 24),
        "linear block, window 40": recipes.linear(policy, 100, block, 40),
        "free block, K = 20, window 12": recipes.speculative(policy, 20, FreeDrafter(), block, 12),
        "linear block, K = 20, window 12": recipes.linear(policy, 20, block, 12),
        "linear block, K = 20, window 6": recipes.linear(policy, 20, block, 6),
    }


COMPILED = (
    "ddpm", "ddpm20", "ddim10", "ddim5", "free block, window 24", "linear block, window 24",
    "linear block, K = 20, window 12", "linear block, K = 20, window 6",
)  # fmt: skip
ALSO_ON_CUDA = ("linear block, window 40", "free block, window 40", "asd, window 24", "free block, K = 20, window 12")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(path.parent.name for path in ROOT.glob("checkpoints/*/config.json")))
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="*", default=[8])
    parser.add_argument(
        "--no-compile", action="store_true", help="leave the compiled ways out (then nothing is a base)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    policy = DiffusionPolicy.load(ROOT / "checkpoints" / options.task, device)
    samplers = eager(policy)
    cond = conditions(policy, max(32, options.calls + 2))
    names = [*COMPILED, *(ALSO_ON_CUDA if device.type == "cuda" else ())]
    noise = torch.randn(1, *policy.event_shape, device=device)
    if not options.no_compile:
        with progress_bar("compiling", len(names)) as bar:
            for name in names:
                compiled = compile_sampler(samplers[name])
                with torch.inference_mode():
                    compiled.warm_up(policy, noise, cond[:1])
                    compiled(policy, noise, cond[:1], torch.Generator().manual_seed(0))
                samplers[f"{name}, compiled"] = compiled
                bar.advance()

    results, table = (
        {},
        [f"# A chunk of {options.task}: {parameters(policy) / 1e6:.1f} M parameters, {device.type}", ""],
    )
    for batch in [1, *options.batches]:
        ways = {name: each for name, each in samplers.items() if batch == 1 or not name.endswith("compiled")}
        rows = _measure(policy, ways, cond, batch, options.calls if batch == 1 else max(3, options.calls // 4), device)
        results[str(batch)] = rows
        table += _table(rows, batch)
    law = {name: bool(each.exact) or name.startswith("diffusers loop") for name, each in samplers.items()}
    content = {"task": options.task, "parameters": parameters(policy), "exact": law, "batches": results}
    keep("latency", f"{options.task}-{device.type}", content, table, device)


def _measure(
    policy: DiffusionPolicy, samplers: dict[str, Any], cond: torch.Tensor, batch: int, calls: int, device: torch.device
) -> dict[str, Any]:
    passes: dict[str, list[int]] = {name: [] for name in samplers}

    def way(name: str) -> Callable[[int], None]:
        def call(number: int) -> None:
            generator = [torch.Generator().manual_seed(1000 * number + row) for row in range(batch)]
            noise = torch.stack([torch.randn(policy.event_shape, generator=each) for each in generator]).to(device)
            pick = [(number + row) % len(cond) for row in range(batch)]
            with torch.inference_mode():
                result = samplers[name](policy, noise, cond[pick], generator)
            passes[name] += result.passes.tolist()

        return call

    taken = take_turns({name: way(name) for name in samplers}, calls, device)
    bases = [name for name in BASES if name in taken]
    return {
        name: {
            "median_ms": sorted(each)[len(each) // 2],
            "calls": len(each),
            "passes": mean_interval(passes[name])._asdict(),
            "exact": bool(samplers[name].exact) or name.startswith("diffusers loop"),
            "faster_than": {base: ratio(taken[base], each) for base in bases},
            "faster_than_the_diffusers_loop": ratio(taken["diffusers loop, DDPM-100"], each),
        }
        for name, each in taken.items()
    }


def _table(rows: dict[str, Any], batch: int) -> list[str]:
    bases = list(next(iter(rows.values()))["faster_than"])
    heads = ["diffusers loop", *bases]
    lines = ["", f"Batch {batch}, {next(iter(rows.values()))['calls']} calls: times as fast as", ""]
    lines += [
        f"| sampler | law | passes | {' | '.join(heads)} |",
        f"| --- | --- | ---: | {' | '.join(['---:'] * len(heads))} |",
    ]
    for name, row in rows.items():
        ratios = [row["faster_than_the_diffusers_loop"], *(row["faster_than"][base] for base in bases)]
        law = "exact" if row["exact"] else "approx."
        lines.append(
            f"| {name} | {law} | {row['passes']['value']:.1f} | {' | '.join(shown(each) for each in ratios)} |"
        )
    return lines


if __name__ == "__main__":
    main()
