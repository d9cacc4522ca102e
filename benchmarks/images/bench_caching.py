"""What does token caching save? Operations, time and distance from the whole network's samples, all in one run.

    python -m benchmarks.images.bench_caching      # the DiTs, and checkpoints/square_transformer
    python -m benchmarks.images.bench_caching runs/train-square --observations runs/x/observations.npz
    python -m benchmarks.images.bench_caching --sets 128 --data datasets/usr/share/datasets/fashion-mnist

Everything samples the same 20-step DDIM chain (η = 0) from the same noise, so that what differs is the caching; beside
it stands the plain way to compute less, fewer steps. Operations are counted by torch's dispatcher, speculative ones
included. Time is of one batch on one thread, ways in turn, as ratios of medians: of the processor's time, which hardly
depends on what else the machine does, and of the clock. A policy is asked for one chunk, and for several at once.

Distance is the root of the mean square difference from the uncached sample, as a share of that sample's own size;
"another draw" is the uncached chain from other noise. One DiT has random weights: its operations and times are those
of a trained one, its distances are not. The other is trained, on small images: ``--sets`` draws many of some ways, from
the same noise, and measures how far they are from held-out ones in the features of an ImageNet network (extra:
``distance``). Caching is approximate; none of these rows has the distribution of the first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from benchmarks.images.sampling import load_pipeline
from benchmarks.images.sets import compare_sets, draw_sets
from specpolicy import SchedulerSampler
from specpolicy.approximate.specdiff.importance import CacheSettings, count_operations, trajectory_of
from specpolicy.approximate.specdiff.sampler import CachedSampler
from specpolicy.evaluation.statistics import mean_interval, ratio_of_medians
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.utils.digests import checkpoint_digest
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "caching"
POLICY = ROOT / "checkpoints" / "square_transformer"
DIT = ROOT / "checkpoints" / "fashion_mnist_dit"
OBSERVATIONS = ROOT / "benchmarks" / "results" / "square_transformer" / "observations.npz"
STEPS = 20
SEED = 400_000
WAYS: dict[str, int | CacheSettings] = {
    "whole": STEPS,
    **{f"ratio {ratio}": CacheSettings(ratio) for ratio in (0.0, 0.25, 0.5, 0.75, 0.9)},
    "ratio 0.5, copies alone": CacheSettings(0.5, copied=1.0),
    "ratio 0.5, extrapolation alone": CacheSettings(0.5, copied=0.0),
    "ratio 0.5, no speculative steps": CacheSettings(0.5, speculative=0),
    **{f"{steps} steps": steps for steps in (10, 5)},
}
DRAWN = ("whole", "ratio 0.5", "ratio 0.75", "ratio 0.9", "10 steps", "5 steps")
"""The ways of which sets of images are drawn."""
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Subject:
    """A network to sample: ``conds`` has one row for each sample, ``batch`` of them share a call."""

    name: str
    denoiser: nn.Module
    scheduler: Any
    event: tuple[int, ...]
    conds: Tensor
    batch: int
    about: dict[str, Any]

    def sampler(self, way: int | CacheSettings) -> Any:
        """Plain DDIM in so many steps, or the 20-step chain with these settings."""
        steps = way if isinstance(way, int) else STEPS
        plain = SchedulerSampler(DDIMScheduler.from_config(self.scheduler.config), steps, {"eta": 0.0})
        return plain if isinstance(way, int) else CachedSampler(plain, way, trajectory_of(self.scheduler))

    def noise(self, number: int) -> Tensor:
        """The start of batch ``number``."""
        return torch.randn(self.batch, *self.event, generator=torch.Generator().manual_seed(SEED + number))


class ImageDenoiser(nn.Module):
    """A DiT as samplers call it; the condition is a class."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Ask for the image itself."""
        return self.transformer(x, timestep=timestep, class_labels=cond).sample


def random_dit(count: int) -> Subject:
    """256 tokens of width 256, and random weights."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "in_channels": 4,
        "num_layers": 3,
        "sample_size": 32,
        "patch_size": 2,
    }
    network = ImageDenoiser(DiTTransformer2DModel(**shape)).eval()
    scheduler = DDPMScheduler(1000, prediction_type="sample", clip_sample=False)
    about = {"network": shape, "tokens": 256}
    return Subject("random_dit", network, scheduler, (4, 32, 32), torch.arange(count), 1, about)


def trained_dit(folder: Path, count: int) -> Subject:
    """A shipped transformer for images, one of each class in turn."""
    pipeline = load_pipeline(folder)
    network = pipeline.transformer.eval()
    shape = network.config
    about = {
        "network": {name: value for name, value in shape.items() if isinstance(value, int) and name[0] != "_"},
        "tokens": (shape.sample_size // shape.patch_size) ** 2,
    }
    event, classes = (shape.in_channels, shape.sample_size, shape.sample_size), torch.arange(count)
    conds = classes % shape.num_embeds_ada_norm
    return Subject(folder.name, ImageDenoiser(network), pipeline.scheduler, event, conds, 1, about)


def trained_policy(checkpoint: Path, observations: Path, count: int, batch: int) -> Subject:
    """A checkpoint, at recorded observations, again from the first one where there are too few."""
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    with np.load(observations) as stored:
        conds = policy.encode({name: stored[name] for name in stored.files})
    conds = conds[torch.arange(count * batch) % len(conds)]
    about = {"network": policy.config.network, "tokens": policy.config.horizon}
    name = checkpoint.name + (f"_batch{batch}" if batch > 1 else "")
    return Subject(name, policy, policy.scheduler, policy.event_shape, conds, batch, about)


def distance(sample: Tensor, reference: Tensor) -> list[float]:
    """Root of the mean square difference of each row, as a share of the reference's own."""
    rows, own = (sample - reference).flatten(1), reference.flatten(1)
    return (rows.norm(dim=1) / own.norm(dim=1)).tolist()


def measure(subject: Subject) -> Iterator[dict[str, Any]]:
    """A row for each way, and one for another draw."""
    count = len(subject.conds) // subject.batch
    samplers = {name: subject.sampler(way) for name, way in WAYS.items()}
    taken = {name: {clock: list[float]() for clock in CLOCKS} for name in WAYS}
    off: dict[str, list[float]] = {name: [] for name in [*WAYS, "another draw"]}
    results: dict[str, Any] = {}

    def call(name: str, noise: Tensor, cond: Tensor) -> None:
        results[name] = samplers[name](subject.denoiser, noise, cond)

    first = subject.noise(0), subject.conds[: subject.batch]
    counts = {name: count_operations(partial(call, name, *first)) for name in WAYS}  # warms up, too
    with progress_bar(subject.name, count) as bar:
        for number in range(count):
            cond = subject.conds[number * subject.batch :][: subject.batch]
            for name in WAYS:
                begin = {clock: read() for clock, read in CLOCKS.items()}
                call(name, subject.noise(number), cond)
                for clock, read in CLOCKS.items():
                    taken[name][clock].append(read() - begin[clock])
                off[name] += distance(results[name].sample, results["whole"].sample)
            other = samplers["whole"](subject.denoiser, subject.noise(count + number), cond)
            off["another draw"] += distance(other.sample, results["whole"].sample)
            bar.advance()
    for name in WAYS:
        yield {
            "way": name,
            "exact_for_whole": isinstance(WAYS[name], int) and WAYS[name] == STEPS,
            "passes": int(results[name].passes[0]),
            "operations": counts[name],
            "operations_ratio": counts[name] / counts["whole"],
            **{
                f"{clock}_ratio": ratio_of_medians(taken[name][clock], taken["whole"][clock])._asdict()
                for clock in CLOCKS
            },
            **{f"{clock}_ms": 1e3 * float(np.median(taken[name][clock])) for clock in CLOCKS},
            "distance": mean_interval(off[name])._asdict(),
        }
    yield {"way": "another draw", "distance": mean_interval(off["another draw"])._asdict()}


def image_sets(subject: Subject, count: int, data: str, checkpoint: Path, work: Path) -> dict[str, Any]:
    """Sets of images of some ways from the same noise: how far from held-out ones, and how far from the first way's."""

    def draw(name: str, seeds: list[int]) -> Tensor:
        noise = [torch.randn(subject.event, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        conds = subject.conds[torch.tensor(seeds) % len(subject.conds)]
        sample: Tensor = subject.sampler(WAYS[name])(subject.denoiser, torch.stack(noise), conds).sample
        return sample

    ways = {name: partial(draw, name) for name in DRAWN}
    sets = draw_sets(ways, count, work, f"{checkpoint_digest(checkpoint)[:12]}-{STEPS}", paired=True)
    sheet = RESULTS / f"{subject.name}_sheet.png"
    found = compare_sets(sets, data, sheet, work, paired=True)
    off = {name: mean_interval(distance(each, sets[DRAWN[0]]))._asdict() for name, each in sets.items()}
    return found | {"off": off}


def run(
    subject: Subject, checkpoint: Path | None, images: Callable[[], dict[str, Any]] | None = None
) -> dict[str, Any]:
    results = {
        "question": (__doc__ or "").partition("\n")[0],
        "subject": subject.name,
        "distribution": "approximate, all but 'whole'",
        "chain": f"DDIM, eta 0, {STEPS} steps",
        "samples": len(subject.conds),
        "batch": subject.batch,
        "calls": len(subject.conds) // subject.batch,
        "threads": torch.get_num_threads(),
        **subject.about,
        "rows": list(measure(subject)),
        **({"images": images()} if images else {}),
        "provenance": collect_provenance(checkpoint, []),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with atomic_path(RESULTS / f"{subject.name}.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def table(results: Mapping[str, Any]) -> str:
    """One subject in Markdown."""
    head = [
        "way",
        "distribution",
        "NFE",
        "operations, × whole",
        "processor time, × whole",
        "clock, × whole",
        "distance",
    ]
    lines: list[Sequence[str]] = [head, ["---", "---", *["---:"] * 5]]
    for row in results["rows"]:
        if "operations" not in row:
            lines.append([row["way"], "", "", "", "", "", _interval(row["distance"], 3)])
            continue
        lines.append(
            [
                row["way"],
                "of the chain" if row["exact_for_whole"] else "approx.",
                str(row["passes"]),
                f"{row['operations_ratio']:.2f}",
                _interval(row["cpu_ratio"]),
                _interval(row["wall_ratio"]),
                _interval(row["distance"], 3),
            ]
        )
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    source, whole = results["provenance"], results["rows"][0]
    return (
        f"## {results['subject']}\n\n{rows}\n\n{results['tokens']} tokens, batch {results['batch']}, "
        f"{results['threads']} thread(s), {results['calls']} calls, {results['samples']} samples; the whole chain "
        f"takes {whole['operations'] / 1e9:.1f} Gflop and {whole['cpu_ms']:.0f} ms of the processor "
        f"({source['machine']['cpu']}, torch {source['packages']['torch']}, diffusers "
        f"{source['packages']['diffusers']}). Intervals are 95 %.\n"
    ) + ("\n" + images_table(results) if "images" in results else "")


def images_table(results: Mapping[str, Any]) -> str:
    """Sets of images, in Markdown."""
    images = results["images"]
    lines = [
        "| images | distribution | Fréchet distance | minus whole's | distance from whole |",
        "| --- | --- |" + " ---: |" * 3,
    ]
    for name, row in images["sets"].items():
        distribution = "" if name == "held out" else "of the chain" if name == "whole" else "approx."
        more = _interval(row["more"], 1) if row["more"] else "–"
        off = _interval(images["off"][name], 3) if name in images["off"] else "–"
        lines.append(f"| {name} | {distribution} | {_interval(row['frechet'], 1)} | {more} | {off} |")
    return (
        "\n".join(lines)
        + f"\n\n{images['images']} images of each set from the same noise and of the same classes, in the "
        f"features of EfficientNet-Lite0 at 112 pixels, on {images['rank']} principal axes of {images['reference']} "
        "held-out images. Intervals: bootstrap over images, 95 %; differences are of the same images drawn again "
        "together. If the network's own images are coarse, smoother ones may be nearer to held-out images: what "
        "caching does is told by the distance from whole.\n"
    )


def _interval(value: Mapping[str, float], digits: int = 2) -> str:
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, default=POLICY, help="of a policy with a transformer")
    parser.add_argument("--observations", type=Path, default=OBSERVATIONS)
    parser.add_argument("--chunks", type=int, default=30, help="of the policy, one a call")
    parser.add_argument("--batch", type=int, default=16, help="chunks in a call of four further ones; 1: none")
    parser.add_argument("--images", type=int, default=8, help="of each DiT; 0 leaves them out")
    parser.add_argument("--dit", type=Path, default=DIT, help="folder of a trained DiT for small images")
    parser.add_argument("--sets", type=int, default=0, help="images of each set whose distance is measured")
    parser.add_argument("--data", help="folder of the idx files that images are compared with")
    parser.add_argument("--work", type=Path, default=Path("runs/bench_caching"), help="for sampled images")
    options = parser.parse_args()
    if options.sets and not options.data:
        parser.error("--sets compares with real images: --data, the folder of their idx files")
    torch.set_num_threads(1)
    subjects: list[tuple[Subject, Path | None, Callable[[], dict[str, Any]] | None]] = []
    if options.checkpoint != POLICY or POLICY.is_dir():
        for batch, calls in ((1, options.chunks), (options.batch, 4))[: 1 + (options.batch > 1)]:
            made = trained_policy(options.checkpoint, options.observations, calls, batch)
            subjects.append((made, options.checkpoint, None))
    if options.images:
        subjects.append((random_dit(options.images), None, None))
    if options.images and options.dit.is_dir():
        dit = trained_dit(options.dit, options.images)
        sets = partial(image_sets, trained_dit(options.dit, 10), options.sets, options.data, options.dit, options.work)
        subjects.append((dit, options.dit, sets if options.sets else None))
    for subject, checkpoint, images in subjects:
        print(table(run(subject, checkpoint, images)))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    with atomic_path(RESULTS / "table.md") as path:
        path.write_text("\n".join(table(each) for each in found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
