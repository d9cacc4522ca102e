"""How short may a chain be? Distance from the distribution of 100 steps, for three ways to take fewer, all in one run.

    python benchmarks/bench_short_chains.py pusht square tool_hang transport

*ddpm* takes the scheduler's evenly spaced timesteps and its noise; *analytic* takes timesteps dense towards the sample
and noise that makes up for what long steps leave out (``x0_variance.json`` beside the checkpoint); *ddim* takes no
noise (η = 0). Each asks the network once a step. The first two are Gaussian chains, which speculative samplers sample
exactly in fewer evaluations; the NFE of recycled drafts without a calibration stand beside them.

Distances are between action chunks at the same recorded observations, see ``specpolicy fidelity``. A task that has been
measured is not measured again; results in ``benchmarks/results/short_chains``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specpolicy import RecyclingDrafter, ReflectionVerifier, SpeculativeSampler, ZeroGuess
from specpolicy import samplers as factories
from specpolicy.calibration.x0_variance import x0_variance_path
from specpolicy.evaluation.fidelity import measure_fidelity
from specpolicy.evaluation.plots import save
from specpolicy.evaluation.results import OBSERVATIONS, read_observations
from specpolicy.evaluation.statistics import mean_interval
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.protocols import Observation
from specpolicy.utils.digests import checkpoint_digest, file_digest
from specpolicy.utils.files import atomic_path
from specpolicy.utils.provenance import collect_provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "short_chains"
LONG, STEPS, TASKS = "ddpm100", (20, 10, 7, 5), ("pusht", "square", "tool_hang", "transport")


def ways(policy: DiffusionPolicy) -> dict[str, Any]:
    """Every way to take every number of steps; the long chain first."""
    samplers: dict[str, Any] = {LONG: factories.sequential(policy, 100)}
    for steps in STEPS:
        samplers[f"ddpm{steps}"] = factories.sequential(policy, steps)
        samplers[f"analytic{steps}"] = factories.sequential(policy, steps, analytic=True)
        samplers[f"ddim{steps}"] = factories.ddim(policy, steps)
    return samplers


def evenly(recorded: Sequence[Observation], most: int) -> list[Observation]:
    """At most so many of the recorded observations, at even distances."""
    picks = np.linspace(0, len(recorded) - 1, min(most, len(recorded))).round().astype(int)
    return [recorded[pick] for pick in picks]


def passes_of(policy: DiffusionPolicy, batch: Mapping[str, Any], steps: int, analytic: bool) -> list[float]:
    """NFE of one chunk with recycled drafts: mean and 95 % interval over observations."""
    process = factories.make_process(policy, steps, analytic)
    sampler = SpeculativeSampler(process, RecyclingDrafter(), ReflectionVerifier(), steps - 1, ZeroGuess())
    result = policy.predict_action(batch, sampler, torch.Generator().manual_seed(0)).result
    return list(mean_interval(result.passes.double().numpy()))


def measured(task: str, observations: int, chunks: int) -> dict[str, Any]:
    """All ways on one task, as plain JSON types."""
    checkpoint, folder = ROOT / "checkpoints" / task, ROOT / "benchmarks" / "results" / task
    policy, recorded = DiffusionPolicy.from_pretrained(checkpoint), read_observations(folder)
    singles, many = evenly(recorded, observations), evenly(recorded, 40)
    batch = {name: np.concatenate([each[name] for each in many]) for name in recorded[0]}
    found = measure_fidelity(policy, ways(policy), singles, chunks=chunks, reference=LONG, permutations=99)
    return {
        "identity": {
            "checkpoint": checkpoint_digest(checkpoint),
            "x0_variance": file_digest(x0_variance_path(checkpoint)),
            "observations": {
                "file": OBSERVATIONS,
                "sha256": file_digest(folder / OBSERVATIONS),
                "count": len(singles),
                "chunks": chunks,
            },
        },
        "ways": {name: asdict(fidelity) for name, fidelity in found.items()},
        "passes": {
            f"{name}{steps}": passes_of(policy, batch, steps, analytic)
            for steps in STEPS
            for name, analytic in (("ddpm", False), ("analytic", True))
        },
        "provenance": collect_provenance(device=policy.device),
    }


def table(found: Mapping[str, Any]) -> str:
    """All tasks measured so far beside one another, as a markdown table."""
    head = ["steps", "way", "distribution", *(f"{task}: distance | spread | roughness | NFE" for task in found)]
    lines = [f"| {' | '.join(head)} |", f"|{' ---: | --- | --- |'}{' ---: |' * 4 * len(found)}"]
    for steps in STEPS:
        for way in ("ddpm", "analytic", "ddim"):
            cells = [str(steps), way, "approx." if way == "ddim" else "its own"]
            for each in found.values():
                row, passes = each["ways"][f"{way}{steps}"], each["passes"].get(f"{way}{steps}")
                mean, low, high = mean_interval(np.asarray(row["distance"]))
                cells += [f"{mean:.3f} [{low:.3f}, {high:.3f}]", f"{np.mean(row['spread']):.2f}"]
                cells += [f"{np.mean(row['roughness']):.2f}", "–" if passes is None else f"{passes[0]:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    chance = ", ".join(f"{task} {np.mean(each['ways'][LONG]['distance']):.3f}" for task, each in found.items())
    told = next(iter(found.values()))["identity"]["observations"]
    return "\n".join(lines) + (
        f"\n\nEnergy distance from the distribution of the 100-step chain, in units of its spread, "
        f"{told['chunks']} chunks at each of {told['count']} observations, with 95 % intervals over these; "
        f"chance alone gives {chance}. "
        "Spread and roughness are relative to the long chain's. NFE: recycled drafts without a "
        "calibration, in one window. "
        '"Its own": a DDPM chain of so many steps, which speculative samplers sample exactly; ddim is not one.\n'
    )


def figure(found: Mapping[str, Any], path: Path) -> None:
    """Distance against steps, a panel for each task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(2.9 * len(found), 2.9), dpi=120, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(1, len(found), sharey=True, squeeze=False)[0]
    styles = {"ddim": ("tab:orange", "s", "ddim (approximate)"), "ddpm": ("tab:gray", "^", "ddpm, fewer steps"),
              "analytic": ("tab:blue", "o", "analytic noise")}  # fmt: skip
    for axis, (task, each) in zip(axes, found.items(), strict=True):
        for way, (colour, marker, label) in styles.items():
            rows = [mean_interval(np.asarray(each["ways"][f"{way}{steps}"]["distance"])) for steps in STEPS]
            mean = np.array([row[0] for row in rows])
            bars = np.abs(np.array([[row[1], row[2]] for row in rows]).T - mean)
            axis.errorbar(STEPS, mean, bars, color=colour, marker=marker, label=label, capsize=2, linewidth=1.4)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(title=task, xlabel="steps", xticks=STEPS, ylim=(-0.015, 0.3))  # DDIM's intervals on Tool Hang go on
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("energy distance from\n100 steps (0: same distribution)")
    axes[-1].legend(frameon=False, fontsize=8)
    save(drawn, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--observations", type=int, default=12, help="of those recorded, at even distances")
    parser.add_argument("--chunks", type=int, default=100, help="drawn by every way at each observation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in options.tasks:
        out = RESULTS / f"{task}.json"
        if not out.exists():
            result = measured(task, options.observations, options.chunks)
            with atomic_path(out) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    (RESULTS / "table.md").write_text(table(found), encoding="utf-8")
    figure(found, RESULTS / "distance_against_steps.png")
    print(table(found))


if __name__ == "__main__":
    main()
