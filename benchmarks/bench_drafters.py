"""Network evaluations and time of a shipped policy by drafter, initial guess and window, all in one run.

    python benchmarks/bench_drafters.py square
    python benchmarks/bench_drafters.py tool_hang

Evaluations: one chunk at each observation, all of them in a batch; the interval is over observations. Time: single
chunks on one thread, samplers in turn on the same observations, as ratios of medians; that of the processor's time
hardly depends on what else the machine does, that of the clock does. The observations are of episodes that the
calibration has not seen. An interrupted run goes on; results in ``benchmarks/results/drafters/<task>.json``, the
evaluations of all tasks beside one another in ``table.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specpolicy import (
    BlockVerifier,
    Drafter,
    FreeDrafter,
    FrozenDrafter,
    LinearDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    SpeculativeSampler,
    X0Guess,
    ZeroGuess,
    samplers,
)
from specpolicy.calibration.store import load_calibration
from specpolicy.evaluation.statistics import mean_interval, ratio_of_medians
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.process import ReverseProcess
from specpolicy.utils.digests import checkpoint_digest, file_digest
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

ROOT = Path(__file__).resolve().parents[1]
OBSERVATIONS = {
    "square": ROOT / "tests" / "policies" / "square_observations.npz",
    **{
        task: ROOT / "benchmarks" / "results" / task / "observations.npz"
        for task in ("pusht", "tool_hang", "transport")
    },
}
WINDOWS = {100: (24, 40, 99), 20: (12, 19)}
CLOCKS = ("wall_ms", "cpu_ms")


def rivals(policy: DiffusionPolicy) -> dict[str, Any]:
    return {
        "ddpm": samplers.sequential(policy, 100),
        "ddpm20": samplers.sequential(policy, 20),
        "ddim10": samplers.ddim(policy, 10),
        "ddim5": samplers.ddim(policy, 5),
    }


def contestants(policy: DiffusionPolicy, checkpoint: Path) -> Iterator[tuple[str, SpeculativeSampler]]:
    for steps, windows in WINDOWS.items():
        calibration = load_calibration(checkpoint, steps)
        process = ReverseProcess.from_scheduler(policy.scheduler, steps)
        drafters: dict[str, Drafter] = {
            "free": FreeDrafter(), "frozen": FrozenDrafter(), "linear": LinearDrafter(calibration.jacobian)
        }  # fmt: skip
        initial_guesses: dict[str, X0Guess | None] = {
            "none": None,
            "zero": ZeroGuess(),
            "fitted": calibration.initial_guess,
        }
        for window in windows:
            for drafter, drafts in drafters.items():
                for initial_guess, guess in initial_guesses.items():
                    name = f"K={steps} window={window} {drafter} initial_guess={initial_guess}"
                    yield name, SpeculativeSampler(process, drafts, BlockVerifier(), window, guess)
            for drafter, jacobian in (("free", None), ("linear", calibration.jacobian)):
                name = f"K={steps} window={window} {drafter} recycled initial_guess=fitted"
                drafts = RecyclingDrafter(jacobian)
                yield name, SpeculativeSampler(process, drafts, ReflectionVerifier(), window, calibration.initial_guess)


def check_held_out(checkpoint: Path, observations: Path) -> None:
    for steps in WINDOWS:
        if load_calibration(checkpoint, steps).about["observations"]["sha256"] == file_digest(observations):
            raise SystemExit(f"{observations} was calibrated on: judge on other observations")


def passes_of(policy: DiffusionPolicy, sampler: Any, batch: dict[str, Any]) -> dict[str, Any]:
    result = policy.predict_action(batch, sampler, torch.Generator().manual_seed(0)).result
    mean, low, high = mean_interval(result.passes.double().numpy())
    evaluations = mean_interval(result.evaluations.double().numpy())
    return {"passes": [mean, low, high], "evaluations": list(evaluations), "n": len(result.passes)}


def timed(policy: DiffusionPolicy, sampler: Any, observation: dict[str, Any], seed: int) -> tuple[float, float]:
    """Milliseconds of one call: of the clock, and of the processor."""
    generator = [torch.Generator().manual_seed(seed)]
    clock, processor = time.perf_counter(), time.process_time()
    policy.predict_action(observation, sampler, generator)
    return 1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - processor)


SHOWN = {100: (24, 99), 20: (12,)}
ROWS = {
    "free, block": "free initial_guess=none",
    "free, block, fitted initial guess": "free initial_guess=fitted",
    "linear, block": "linear initial_guess=fitted",
    "free, recycled": "free recycled initial_guess=fitted",
    "linear, recycled": "linear recycled initial_guess=fitted",
}


def overview(folder: Path) -> str:
    """NFE of all tasks measured so far, as a markdown table."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    lines = [["K", "window", "drafts, verification", *found], ["---:", "---:", "---", *["---:"] * len(found)]]
    for steps, windows in SHOWN.items():
        for window, (name, key) in product(windows, ROWS.items()):
            rows = [each["samplers"].get(f"K={steps} window={window} {key}") for each in found.values()]
            cells = ["–" if row is None else "{:.1f} [{:.1f}, {:.1f}]".format(*row["passes"]) for row in rows]
            lines.append([str(steps), str(window), name, *cells])
    observations = " or ".join(sorted({str(each["identity"]["observations"]["count"]) for each in found.values()}))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{table}\n\nNFE of one chunk, means over {observations} observations with 95 % intervals; all exact. "
        "Recycled drafts go with reflection, and have the fitted initial guess too.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(OBSERVATIONS))
    parser.add_argument("--observations", type=int, default=40, help="how many of those recorded")
    parser.add_argument("--calls", type=int, default=8, help="timed calls of each sampler; 0 times nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint, source = ROOT / "checkpoints" / options.task, OBSERVATIONS[options.task]
    check_held_out(checkpoint, source)
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    with np.load(source) as arrays:
        stacked = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(stacked.values())))
    picks = np.unique(np.linspace(0, count - 1, min(options.observations, count)).round().astype(int))
    batch = {name: part[picks] for name, part in stacked.items()}

    out = ROOT / "benchmarks" / "results" / "drafters" / f"{options.task}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    identity = {
        "checkpoint": checkpoint_digest(checkpoint),
        "calibrations": {str(steps): file_digest(checkpoint / f"calibration-{steps}.safetensors") for steps in WINDOWS},
        "observations": {"file": source.name, "sha256": file_digest(source), "count": len(picks)},
    }
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if found.get("identity") != identity:
        found = {"identity": identity, "samplers": {}}
    samplers = {**rivals(policy), **dict(contestants(policy, checkpoint))}

    def write() -> None:
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    with progress_bar("samplers", len(samplers), completed=len(found["samplers"])) as bar:
        for name, sampler in samplers.items():
            if name in found["samplers"]:
                continue
            found["samplers"][name] = {"exact": bool(sampler.exact), **passes_of(policy, sampler, batch)}
            bar.advance()
            write()
    provenance = {**collect_provenance(device=policy.device), "command": [Path(__file__).name, options.task]}
    found.setdefault("provenance", provenance)
    done = min(len(row.get("cpu_ms", [])) for row in found["samplers"].values())
    with progress_bar("time", options.calls, completed=done) as bar:
        for call in range(done, options.calls):
            observation = {name: part[call % len(picks)][None] for name, part in batch.items()}
            for name in np.random.default_rng(call).permutation(list(samplers)):
                row = found["samplers"][name]
                taken = timed(policy, samplers[name], observation, call)
                for clock, milliseconds in zip(CLOCKS, taken, strict=True):
                    row[clock] = [*row.get(clock, [])[:call], milliseconds]
            bar.advance()
            found["provenance"] = provenance
            write()
    for row in found["samplers"].values() if max(done, options.calls) > 1 else ():
        row["time_against"] = {
            rival: {clock: list(ratio_of_medians(row[clock], found["samplers"][rival][clock])) for clock in CLOCKS}
            for rival in ("ddpm", "ddim10", "ddim5")
        }
    write()
    with atomic_path(out.parent / "table.md") as temporary:
        temporary.write_text(overview(out.parent), encoding="utf-8")
    for name, row in found["samplers"].items():
        mean, low, high = row["passes"]
        shown = f"{name:45s} passes {mean:6.2f} [{low:.2f}, {high:.2f}]"
        if "time_against" in row:
            ratios = {rival: row["time_against"][rival]["cpu_ms"] for rival in ("ddpm", "ddim10")}
            shown += "".join(f"  {r[0]:.3f} [{r[1]:.3f}, {r[2]:.3f}] of {rival}" for rival, r in ratios.items())
        print(shown)


if __name__ == "__main__":
    main()
