"""What does ASDSV gain? A small network drafts for a trained one, beside fewer steps and exact speculation, in one run.

    python -m benchmarks.images.bench_asdsv checkpoints/fashion_mnist checkpoints/fashion_mnist_draft --chains 24
    python -m benchmarks.images.bench_asdsv … --images 128 --data datasets/usr/share/datasets/fashion-mnist

ASDSV (Zhou et al. 2025) is *approximate*: accepted drafts keep the small network's error. So are DDIM in fewer steps
and the small network alone, which stand beside it, since they are the plain ways to the same end; speculation with
free drafts and block verification is exact. Every way takes the same seeds, in turn, one chain at a time and 16 in a
call; times are of the clock and of the processor. The same is asked of two diffusers pipelines, of which the second
drafts.
``--images`` measures how far sets of images are from held-out ones (extra: ``distance``).

An interrupted run goes on where it stopped; results in ``benchmarks/results/asdsv``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from benchmarks.images.asdsv_tables import overview
from benchmarks.images.sampling import load_pipeline, network_of
from benchmarks.images.sets import SEED, compare_sets, draw_sets
from specpolicy import AdaptiveWindow, ReverseProcess, SchedulerSampler, SequentialSampler, SpeculativeSampler
from specpolicy.approximate.asdsv import ThresholdVerifier, asdsv_fast, asdsv_slow
from specpolicy.interop.diffusers.accelerate import approximate
from specpolicy.speculative.denoiser import Denoiser
from specpolicy.speculative.result import SampleResult
from specpolicy.utils.digests import checkpoint_digest
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

RESULTS = Path(__file__).resolve().parents[1] / "results" / "asdsv"
BATCH = 16
FEWER = (20, 10)
WORTH = 0.1  # of a window that adapts
Seeds = Sequence[int]


@dataclass(frozen=True)
class Subject:
    """Two networks for one chain: of images, of actions, of anything.

    Attributes:
        target, draft: asked with ``(x, timestep, cond)``; of the same prediction type.
        scheduler: which both were trained with. steps: of the chain.
        event: shape of one sample.
        conds: rows to be sampled under in turn; None for networks without a condition.
    """

    target: Denoiser
    draft: Denoiser
    scheduler: DDPMScheduler
    steps: int
    event: tuple[int, ...]
    conds: Tensor | None = None

    def sample(self, sampler: Any, network: Denoiser, seeds: Seeds) -> SampleResult:
        """One chain for each seed, which gives its first state, its noise and its condition."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(self.event, generator=each) for each in generators])
        cond = None if self.conds is None else self.conds[torch.tensor(list(seeds)) % len(self.conds)]
        result: SampleResult = sampler(network, noise, cond=cond, generator=generators)
        return result


@dataclass(frozen=True)
class Way:
    """A way to sample: called with seeds. ``exact``: whether it samples the target's distribution."""

    draw: Callable[[Seeds], SampleResult]
    exact: bool = False


def ways_of(subject: Subject, deltas: Sequence[float]) -> dict[str, Way]:
    """The sequential chain first; ``deltas`` are thresholds of ``asdsv_slow``."""
    process = ReverseProcess.from_scheduler(subject.scheduler, subject.steps)
    ddim = DDIMScheduler.from_config(subject.scheduler.config)
    exact = {
        "sequential": SequentialSampler(process),
        "free block, adaptive": SpeculativeSampler(process, window=AdaptiveWindow(min_acceptance=WORTH)),
    }
    near: dict[str, Any] = {
        f"asdsv_slow, delta {delta:g}": asdsv_slow(process, subject.draft, delta) for delta in deltas
    }
    near["asdsv_fast"] = asdsv_fast(process, subject.draft)
    near |= {f"DDIM, {steps} steps": SchedulerSampler(ddim, steps, {"eta": 0.0}) for steps in FEWER}
    sample = partial(partial, subject.sample)
    return {
        **{name: Way(sample(each, subject.target), True) for name, each in exact.items()},
        **{name: Way(sample(each, subject.target)) for name, each in near.items()},
        "draft network alone": Way(sample(exact["sequential"], subject.draft)),
    }


def pipeline_ways(pipeline: Any, drafting: Any, steps: int, delta: float) -> dict[str, Way]:
    """The stock pipeline, and the same with the network of a second one that drafts."""

    def call(around: Callable[[], Any], seeds: Seeds) -> SampleResult:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        torch.manual_seed(seeds[0])
        with around() as fast:
            images = pipeline(
                batch_size=len(seeds), num_inference_steps=steps, generator=generators, output_type="np"
            ).images
            account = None if fast is None else fast.account
        sample, each = torch.as_tensor(images).permute(0, 3, 1, 2) * 2 - 1, torch.full((len(seeds),), steps)
        if account is None:
            return SampleResult(sample=sample, passes=each, evaluations=each)
        return replace(account, sample=sample)

    def drafted(bound: float) -> Callable[[], Any]:
        return partial(approximate, pipeline, network_of(drafting), ThresholdVerifier(bound))

    return {
        "stock pipeline": Way(partial(call, nullcontext), True),
        f"two pipelines, delta {delta:g}": Way(partial(call, drafted(delta))),
        "two pipelines, unchecked": Way(partial(call, drafted(float("inf")))),
    }


def measure(
    ways: Mapping[str, Way], calls: int, batch: int, kept: dict[str, list[dict[str, Any]]], save: Callable[[], None]
) -> None:
    """Times and passes, every way in a random order on the same seeds; ``kept`` is filled up to ``calls`` rows each.

    Args:
        ways: by name. calls: of each. batch: chains in a call.
        kept: rows so far, by name, one a call: seed, seconds, and means over the batch of evaluations and rows.
        save: called after each round.
    """
    for name in ways:
        kept.setdefault(name, [])
    left = [number for number in range(calls) if any(len(kept[name]) <= number for name in ways)]
    for way in ways.values() if left else ():
        way.draw([SEED - 1])  # warms up
    with progress_bar(f"batch {batch}", calls, calls - len(left)) as bar:
        for number in left:
            seeds = [SEED + number * batch + each for each in range(batch)]
            for name in np.random.default_rng(number).permutation(list(ways)):
                if len(kept[name]) > number:
                    continue
                clock, processor = time.perf_counter(), time.process_time()
                result = ways[name].draw(seeds)
                cpu, wall = time.process_time() - processor, time.perf_counter() - clock
                kept[name].append({"seed": seeds[0], "wall_seconds": wall, "cpu_seconds": cpu, **account(result)})
            save()
            bar.advance()


def account(result: SampleResult) -> dict[str, float]:
    """Of one call: NFE and rows of the target, NFE of the draft network, and steps drafted and kept."""
    drafted = kept = 0
    if result.proposed is not None and result.accepted is not None:
        drafted, kept = int(result.proposed.clamp(min=0).sum()), int(result.accepted.clamp(min=0).sum())
    drafts = getattr(result, "draft_passes", None)
    return {
        "passes": float(result.passes.double().mean()),
        "rows": float(result.evaluations.double().mean()),
        "draft_passes": 0.0 if drafts is None else float(drafts.double().mean()),
        "drafted": drafted,
        "kept": kept,
    }


@contextmanager
def stored(out: Path, identity: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """What was found under this identity so far, and how to write it; written at the end, too."""
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if found.get("identity") != identity:
        found = {"question": (__doc__ or "").partition("\n")[0], "identity": dict(identity)}

    out.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")

    yield found, save
    save()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="folder of a DDPMPipeline")
    parser.add_argument("draft", help="folder of one with a smaller network, of the same states and noise levels")
    parser.add_argument("--steps", type=int, default=100, help="of the chain")
    parser.add_argument("--deltas", type=float, nargs="*", default=[0.05, 0.1, 0.2], help="thresholds of asdsv_slow")
    parser.add_argument("--chains", type=int, default=0, help="single chains of each way")
    parser.add_argument("--batches", type=int, default=0, help=f"calls of {BATCH} chains of each way")
    parser.add_argument("--images", type=int, default=0, help="of each set whose distance is measured")
    parser.add_argument("--data", help="folder of the idx files that images are compared with")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_asdsv"), help="for sampled images")
    options = parser.parse_args()
    if options.images and not options.data:
        parser.error("--images compares with real ones: --data, the folder of their idx files")
    if not options.deltas:
        parser.error("--deltas wants at least one threshold")
    torch.set_num_threads(1)
    pipeline, drafting = load_pipeline(options.target), load_pipeline(options.draft)
    networks: list[Any] = [network_of(each).eval() for each in (pipeline, drafting)]

    def asked(network: Any) -> Denoiser:
        return lambda x, timestep, cond: network(x, timestep, return_dict=False)[0]

    shape = networks[0].config
    event = (shape.in_channels, shape.sample_size, shape.sample_size)
    subject = Subject(asked(networks[0]), asked(networks[1]), pipeline.scheduler, options.steps, event)
    ways = ways_of(subject, options.deltas)
    served = pipeline_ways(pipeline, drafting, options.steps, options.deltas[-1])
    identity = {
        "target": checkpoint_digest(options.target),
        "draft": checkpoint_digest(options.draft),
        "parameters": [sum(each.numel() for each in network.parameters()) for network in networks],
        "steps": options.steps,
    }
    out = options.out / f"{Path(options.target).name}_{options.steps}.json"
    with stored(out, identity) as (found, save):
        found["provenance"] = collect_provenance(options.target)
        found["exact"] = {name: way.exact for name, way in (ways | served).items()}
        for group, part, calls, batch in (
            ("chains", ways, options.chains, 1),
            ("batches", ways, options.batches, BATCH),
            ("pipelines", served, options.batches, BATCH),
        ):
            if calls:
                measure(part, calls, batch, found.setdefault(group, {}), save)
        if options.images:
            drawn = {"sequential": ways["sequential"], "sequential again": ways["sequential"]}
            drawn |= {name: way for name, way in ways.items() if name != "sequential"}
            drawn |= {name: way for name, way in served.items() if not way.exact}
            draws = {name: partial(_images, way) for name, way in drawn.items()}
            key = f"{identity['target'][:12]}-{identity['draft'][:12]}-{options.steps}"
            sets = draw_sets(draws, options.images, options.work, key)
            found["distances"] = compare_sets(sets, options.data, out.with_name(f"{out.stem}_sheet.png"), options.work)
    text = overview(found)
    with atomic_path(out.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return 0


def _images(way: Way, seeds: Seeds) -> Tensor:
    return way.draw(seeds).sample


if __name__ == "__main__":
    sys.exit(main())
