"""How long does a robot wait for a chunk, whatever computes it? Everything side by side, in one run.

    python benchmarks/bench_chunk_latency.py square
    python benchmarks/bench_chunk_latency.py tool_hang --device cuda --calls 100
    python benchmarks/bench_chunk_latency.py square --widen 4 --only ddpm ddim10 "linear block, window 24" --batches

Batch 1 is what a robot waits for; other batch sizes are timed eagerly, without ParaDiGMS, which runs its chains one by
one here. Rivals are treated as well as ours: the plain diffusers loop as users run it, the same chains compiled (on a
GPU captured whole as one CUDA graph, and captured so without a compiler: ``ddpm, captured``), few-step DDIM likewise,
ParaDiGMS, and the loops of LeRobot and of robomimic (0.5 or newer) where these are installed, LeRobot's with its own
compilation too. Ratios are against the DDPM-100 of these loops and the compiled and captured DDPM-100, DDIM-10 and
DDIM-5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from peers import PeerSampler, disagreement, peers
from picard import PicardSampler
from side_by_side import ROOT, conditions, keep, parameters, ratio, shown, take_turns
from widened import widened

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    FrozenDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ReverseProcess,
    SchedulerSampler,
    samplers,
)
from specpolicy.evaluation.statistics import mean_interval
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.compiled.sampler import compile_sampler
from specpolicy.utils.progress import progress_bar

LOOP = "diffusers loop, DDPM-100"
CAPTURED = ("ddpm", "ddim10", "ddim5")
"""What is captured without a compiler on a GPU, too: what users have who capture their own loop."""
BASES = tuple(f"{name}, {how}" for how in ("compiled", "captured") for name in CAPTURED)
SAME = 0.05  # of a chunk's coordinates in [-1, 1], after 100 steps in TF32; other chunks differ by ten times as much


def eager(policy: DiffusionPolicy) -> dict[str, Any]:
    """Samplers by name, as they come."""
    ddpm100 = policy.scheduler
    process = ReverseProcess.from_scheduler(ddpm100, 100)
    block = BlockVerifier()
    return {
        LOOP: SchedulerSampler(ddpm100, 100),
        "ddpm": samplers.sequential(policy, 100),
        "ddpm20": samplers.sequential(policy, 20),
        "ddim10": samplers.ddim(policy, 10),
        "ddim5": samplers.ddim(policy, 5),
        "ParaDiGMS, window 25, tolerance 0.1": PicardSampler(process),
        "asd, window 24": samplers.speculative(policy, 100, FrozenDrafter(), ReflectionVerifier(), 24),
        "free reflection, window 24": samplers.speculative(policy, 100, FreeDrafter(), ReflectionVerifier(), 24),
        "frozen block, window 24": samplers.speculative(policy, 100, FrozenDrafter(), block, 24),
        "free block, window 24": samplers.speculative(policy, 100, FreeDrafter(), block, 24),
        "free block, window 40": samplers.speculative(policy, 100, FreeDrafter(), block, 40),
        "linear block, window 24": samplers.calibrated(policy, 100, block, 24),
        "linear block, window 40": samplers.calibrated(policy, 100, block, 40),
        "free block, K = 20, window 12": samplers.speculative(policy, 20, FreeDrafter(), block, 12),
        "linear block, K = 20, window 12": samplers.calibrated(policy, 20, block, 12),
        "linear block, K = 20, window 6": samplers.calibrated(policy, 20, block, 6),
        **{
            f"linear recycled, {'' if steps == 100 else f'K = {steps}, '}window {window}": samplers.calibrated(
                policy, steps, ReflectionVerifier(), window, drafter=RecyclingDrafter
            )
            for steps, window in ((100, 24), (100, 40), (100, 99), (20, 6), (20, 12))
        },
        **{
            f"analytic recycled, K = 10, window {window}": samplers.calibrated(
                policy, 10, ReflectionVerifier(), window, drafter=RecyclingDrafter, analytic=True
            )
            for window in (5, 9)
        },
    }


COMPILED = (
    "ddpm", "ddpm20", "ddim10", "ddim5", "free block, window 24", "linear block, window 24",
    "linear block, K = 20, window 12", "linear block, K = 20, window 6", "linear recycled, window 24",
    "linear recycled, K = 20, window 6", "linear recycled, K = 20, window 12", "analytic recycled, K = 10, window 5",
    "analytic recycled, K = 10, window 9",
)  # fmt: skip
ALSO_ON_CUDA = (
    "linear block, window 40", "free block, window 40", "asd, window 24", "free block, K = 20, window 12",
    "linear recycled, window 40", "linear recycled, window 99",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(path.parent.name for path in ROOT.glob("checkpoints/*/config.json")))
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="*", default=[8])
    parser.add_argument("--widen", type=int, help="every channel copied so often: the same function, a larger network")
    parser.add_argument(
        "--only", nargs="*", metavar="SAMPLER", help=f"these, their compiled forms and the {LOOP} that is always there"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave the compiled ways out (then they are no bases either)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / options.task, device)
    if options.widen:
        try:
            policy = widened(policy, options.widen)
        except ValueError as error:
            parser.error(str(error))
    cond = conditions(policy, max(32, options.calls + 2))
    theirs, about = peers(policy, not options.no_compile)
    same = {name: disagreement(each, policy, cond[:2]) for name, each in theirs.items() if "compiled" not in name}
    if max(same.values(), default=0.0) > SAME:
        raise SystemExit(f"a peer's chunks are not those of the {LOOP} (largest differences {same}): not the same work")
    samplers: dict[str, Any] = {**eager(policy), **theirs}
    if options.only is not None:
        if unknown := set(options.only) - set(samplers):
            parser.error(f"--only: no {sorted(unknown)} here; known: {sorted(samplers)}")
        wanted = {LOOP, *options.only}
        samplers = {name: each for name, each in samplers.items() if name.removesuffix(", compiled") in wanted}
    if not options.no_compile:
        samplers.update(_compiled(policy, samplers, cond[:1], device))

    title = f"# A chunk of {options.task}: {parameters(policy) / 1e6:.1f} M parameters, {device.type}"
    table = [title, "", "; ".join(f"{name} {version}" for name, version in about.items())]
    content: dict[str, Any] = {
        "task": options.task,
        "widened": options.widen or 1,
        "parameters": parameters(policy),
        "peers": about,
        "peers_differ_by": same,
        "exact": {name: _exact(name, each) for name, each in samplers.items()},
        "batches": {},
    }
    name = f"{options.task}{'-wide' if options.widen else ''}-{device.type}"
    for batch in [1, *options.batches]:
        ways = {name: each for name, each in samplers.items() if batch == 1 or _batched(name, each)}
        rows = _measure(policy, ways, cond, batch, options.calls if batch == 1 else max(3, options.calls // 4), device)
        content["batches"][str(batch)] = rows
        table += _table(rows, batch)
        keep("latency", name, content, table, device)


def _compiled(
    policy: DiffusionPolicy, samplers: dict[str, Any], cond: torch.Tensor, device: torch.device
) -> dict[str, Any]:
    """Compiled and captured forms by name, warmed up; the peers' own are among ``samplers`` already."""
    names = [*COMPILED, *(ALSO_ON_CUDA if device.type == "cuda" else ())]
    names = [name for name in samplers if name in names or name.endswith(", compiled")]
    noise = torch.randn(1, *policy.event_shape, device=device)
    made: dict[str, Any] = {}
    for name in names:
        each = samplers[name]
        if isinstance(each, PeerSampler):
            made[name] = each
        else:
            made[f"{name}, compiled"] = compile_sampler(each)
            if device.type == "cuda" and name in CAPTURED:
                made[f"{name}, captured"] = compile_sampler(each, "graph")
    with progress_bar("compiling", len(made)) as bar, torch.inference_mode():
        for each in made.values():
            if not isinstance(each, PeerSampler):
                each.warm_up(policy, noise, cond)
            each(policy, noise, cond, torch.Generator().manual_seed(0))
            bar.advance()
    return made


def _batched(name: str, sampler: Any) -> bool:
    return not name.endswith((", compiled", ", captured")) and not isinstance(sampler, PicardSampler)


def _exact(name: str, sampler: Any) -> bool:
    return bool(sampler.exact) or name == LOOP  # a scheduler's sampler does not know whose distribution it has


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
    bases = [name for name in taken if name.endswith("DDPM-100") and name != LOOP]
    bases += [name for name in BASES if name in taken]
    return {
        name: {
            "median_ms": sorted(each)[len(each) // 2],
            "calls": len(each),
            "passes": mean_interval(passes[name])._asdict(),
            "exact": _exact(name, samplers[name]),
            "faster_than": {base: ratio(taken[base], each) for base in bases},
            "faster_than_the_diffusers_loop": ratio(taken[LOOP], each),
        }
        for name, each in taken.items()
    }


def _table(rows: dict[str, Any], batch: int) -> list[str]:
    bases = list(next(iter(rows.values()))["faster_than"])
    heads = ["diffusers loop", *bases]
    lines = ["", f"Batch {batch}, {next(iter(rows.values()))['calls']} calls: times as fast as", ""]
    lines += [
        f"| sampler | distribution | network evaluations | {' | '.join(heads)} |",
        f"| --- | --- | ---: | {' | '.join(['---:'] * len(heads))} |",
    ]
    for name, row in rows.items():
        ratios = [row["faster_than_the_diffusers_loop"], *(row["faster_than"][base] for base in bases)]
        distribution = "exact" if row["exact"] else "approx."
        lines.append(
            f"| {name} | {distribution} | {row['passes']['value']:.1f} | {' | '.join(shown(each) for each in ratios)} |"
        )
    return lines


if __name__ == "__main__":
    main()
