"""What do images gain? One shipped pipeline, sampled by the sequential chain and by speculation, all in one run.

    python -m benchmarks.images.bench_speculation checkpoints/fashion_mnist --steps 100 --chains 24 --windows 4 8 16
    python -m benchmarks.images.bench_speculation checkpoints/fashion_mnist --steps 1000 --chains 12 --windows 16 32
    python -m benchmarks.images.bench_speculation checkpoints/fashion_mnist --steps 100 --images 256 --data datasets/…

NFE: single chains, every sampler on the same seeds in a random order; a chain's time is of the clock and of the
processor, the latter hardly depends on what else the machine does. Frozen and Free drafts with reflection, residual and
block verification are the comparison of Soen et al. (2026). ``--images`` also samples sets of images and measures how
far each is from held-out ones, in the features of an ImageNet network (extra: ``distance``).

An interrupted run goes on where it stopped; results in ``benchmarks/results/images``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.images.sampling import load_pipeline
from benchmarks.images.sets import SEED, compare_sets, draw_sets
from benchmarks.images.tables import TENTHS, accepted_along, comparison, comparison_figure, overview
from specpolicy import (
    AdaptiveWindow,
    BlockVerifier,
    FreeDrafter,
    FrozenDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    ReverseProcess,
    SequentialSampler,
    SpeculativeSampler,
)
from specpolicy.evaluation.plots import save
from specpolicy.utils.digests import checkpoint_digest
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

RESULTS = Path(__file__).resolve().parents[1] / "results" / "images"
DRAFTERS = {"frozen": FrozenDrafter(), "free": FreeDrafter()}
VERIFIERS = {"reflection": ReflectionVerifier(), "residual": ResidualVerifier(), "block": BlockVerifier()}
ADAPTIVE = {"adaptive 0.1": AdaptiveWindow(min_acceptance=0.1), "adaptive 0.3": AdaptiveWindow(min_acceptance=0.3)}


def contestants(process: ReverseProcess, windows: list[int]) -> dict[str, Any]:
    """The sequential chain first; then windows that adapt, recycled drafts, and the six pairs at each window."""
    pairs = {
        f"{draft} {verify} {window}": SpeculativeSampler(process, drafter, verifier, window)
        for window in windows
        for draft, drafter in DRAFTERS.items()
        for verify, verifier in VERIFIERS.items()
    }
    adaptive = {name: SpeculativeSampler(process, window=window) for name, window in ADAPTIVE.items()}
    recycled = {
        f"recycled {window}": SpeculativeSampler(process, RecyclingDrafter(), ReflectionVerifier(), window)
        for window in (8, 24)
    }
    return {"sequential": SequentialSampler(process), **adaptive, **recycled, **pairs}


class Model:
    """A pipeline's network as the samplers ask it, and its chain."""

    def __init__(self, folder: str, steps: int, device: str) -> None:
        pipeline = load_pipeline(folder, device)
        self.network, self.device = pipeline.unet.eval(), device
        config = self.network.config
        self.event = (config.in_channels, config.sample_size, config.sample_size)
        self.process = ReverseProcess.from_scheduler(pipeline.scheduler, steps)

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, cond: None) -> torch.Tensor:
        """One pass."""
        return self.network(x, timestep, return_dict=False)[0]

    def sample(self, sampler: Any, seeds: list[int]) -> Any:
        """One chain for each seed; the seed gives its first state and its noise."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(self.event, generator=each) for each in generators]).to(self.device)
        return sampler(self, noise, generator=generators)

    def images(self, sampler: Any, seeds: list[int]) -> torch.Tensor:
        """The images alone."""
        sample: torch.Tensor = self.sample(sampler, seeds).sample
        return sample


def measure_chains(model: Model, samplers: Mapping[str, Any], chains: int, found: dict[str, Any], out: Path) -> None:
    """Chains one by one, each sampler in turn on each seed; written after every seed."""
    kept: dict[str, list[dict[str, Any]]] = found.setdefault("chains", {})
    kept.update({name: kept.get(name, []) for name in samplers if chains})  # in this order in the table
    for sampler in (samplers["sequential"], samplers["adaptive 0.1"]) if chains else ():
        model.sample(sampler, [SEED - 1])  # warms up
    with progress_bar("chains", chains) as bar:
        for number in range(chains):
            for name in np.random.default_rng(number).permutation(list(samplers)):
                if len(kept[name]) > number:
                    continue
                clock, processor = time.perf_counter(), time.process_time()
                result = model.sample(samplers[name], [SEED + number])
                cpu, wall = time.process_time() - processor, time.perf_counter() - clock
                kept[name].append({"seed": SEED + number, "wall_seconds": wall, "cpu_seconds": cpu, **account(result)})
            write(out, found)
            bar.advance()


def account(result: Any) -> dict[str, Any]:
    """Of one chain: passes, rows, and for each tenth of the chain rounds begun, steps drafted and steps kept."""
    tenths = np.zeros((TENTHS, 3), int)
    if result.start is not None:
        steps = int((result.accepted + 1)[result.start >= 0].sum())
        for start, drafted, kept in zip(result.start[:, 0], result.proposed[:, 0], result.accepted[:, 0], strict=True):
            if start >= 0:
                tenths[int(start) * TENTHS // steps] += (1, int(drafted), int(kept))
    return {"passes": int(result.passes), "rows": int(result.evaluations), "tenths": tenths.tolist()}


def write(out: Path, found: Mapping[str, Any]) -> None:
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")


def show(found: Mapping[str, Any], out: Path) -> None:
    """Tables and figures of what has been measured."""
    text = overview(found)
    if any(name.startswith("frozen") for name in found.get("chains", {})):
        text += "\n" + comparison(found)
        save(comparison_figure(found), out.with_name(f"{out.stem}_comparison.png"))
    if found.get("chains"):
        save(accepted_along(found), out.with_name(f"{out.stem}_acceptance.png"))
    with atomic_path(out.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


def command(options: argparse.Namespace) -> list[str]:
    """How to ask for the same again; where data and kept images lie says nothing to others."""
    asked = {name: getattr(options, name) for name in ("steps", "chains", "windows", "images")}
    windows = map(str, asked.pop("windows"))
    return [
        Path(__file__).name,
        options.model,
        *(f"--{name}={value}" for name, value in asked.items()),
        "--windows",
        *windows,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a DDPMPipeline")
    parser.add_argument("--steps", type=int, default=100, help="of the chain")
    parser.add_argument("--chains", type=int, default=0, help="single chains of each sampler")
    parser.add_argument("--windows", type=int, nargs="*", default=[4, 8, 16], help="for the six pairs")
    parser.add_argument("--images", type=int, default=0, help="of each set whose distance is measured")
    parser.add_argument("--data", help="folder of the idx files that images are compared with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench_speculation"), help="where sampled images are kept"
    )
    options = parser.parse_args()
    if options.images and not options.data:
        parser.error("--images compares with real ones: --data, the folder of their idx files")
    model = Model(options.model, options.steps, options.device)
    samplers = contestants(model.process, options.windows)
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out / f"{Path(options.model).name}_{options.steps}.json"
    identity = {"checkpoint": checkpoint_digest(options.model), "steps": options.steps, "device": options.device}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if found.get("identity") != identity:
        found = {"question": (__doc__ or "").partition("\n")[0], "identity": identity}
    found["provenance"] = collect_provenance(options.model, device=options.device) | {"command": command(options)}
    measure_chains(model, samplers, options.chains, found, out)
    if options.images:
        # another set of the sequential chain shows what chance does
        names = {"sequential": "sequential", "sequential again": "sequential", "adaptive 0.1": "adaptive 0.1"}
        names |= {f"free block {window}": f"free block {window}" for window in options.windows[:1]}
        work = options.work / f"{Path(options.model).name}-{options.steps}"
        ways = {name: partial(model.images, samplers[which]) for name, which in names.items()}
        sets = draw_sets(ways, options.images, work, identity["checkpoint"][:12])
        found["distances"] = compare_sets(
            sets, options.data, out.with_name(f"{out.stem}_sheet.png"), work, model.device
        )
        write(out, found)
    show(found, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
