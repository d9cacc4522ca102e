"""Sampling the same images with several samplers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from specpolicy.progress import progress_bar

from .pipelines import MakeSampler, ask, call_arguments, contestant
from .record import Batch, Folder


@dataclass(frozen=True)
class ImageJob:
    """What to sample.

    Attributes:
        samplers: recipes by name. settings: all that the results depend on, in plain types, to know them again by.
        images: number of images. batch: of them that share passes. seed: image i belongs to ``seed + i``.
        labels, prompts: of the pipelines that take them, in turn. call: further arguments of the call.
    """

    samplers: Mapping[str, MakeSampler]
    settings: Mapping[str, Any]
    images: int = 8
    batch: int = 1
    seed: int = 0
    labels: Sequence[int] = ()
    prompts: Sequence[str] = ()
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 1:
            raise ValueError(f"images={self.images}, batch={self.batch}; both must be at least 1")


def sample_images(pipeline: Any, job: ImageJob, out: Path) -> dict[str, list[Batch]]:
    """Sample every image with every sampler, batch by batch in turn, so that a drift of the machine hits all alike.

    Images and accounts are written to ``out`` as they are made; what is there already is not made again.

    Raises:
        ValueError: ``out`` holds images of other settings.
        ModelError, PipelineRefused: pipeline and sampler do not fit.
    """
    call_arguments(pipeline, [0], job.labels, job.prompts)  # what is refused leaves no folder behind
    folder = Folder(out, dict(job.settings))
    groups = [list(range(first, min(first + job.batch, job.images))) for first in range(0, job.images, job.batch)]
    done = {name: {number for each in folder.batches(name) for number in each.images} for name in job.samplers}
    left = [(group, name) for group in groups for name in job.samplers if not set(group) <= done[name]]
    with progress_bar("images", len(groups) * len(job.samplers), len(groups) * len(job.samplers) - len(left)) as bar:
        for group, name in left:
            bar.describe(name)
            _sample(pipeline, job, folder, name, group)
            bar.advance()
    return {name: folder.batches(name) for name in job.samplers}


def _sample(pipeline: Any, job: ImageJob, folder: Folder, name: str, group: list[int]) -> None:
    arguments = call_arguments(pipeline, group, job.labels, job.prompts) | dict(job.call)
    with contestant(pipeline, job.samplers[name]) as (steps, exact, served):
        # what a stock pipeline draws from torch's own generator belongs to the image's seed, too
        torch.manual_seed(job.seed + group[0])
        begin = time.perf_counter()
        images, account = ask(pipeline, arguments, steps, [job.seed + each for each in group], served)
        seconds = time.perf_counter() - begin
    folder.add(name, Batch.of(group, seconds, steps, exact, account), images)


def table(results: Mapping[str, Sequence[Batch]]) -> str:
    """Seconds, passes, rows and acceptance of each sampler, in Markdown; the first sampler is what times relate to."""
    lines = [
        "| sampler | law | steps | images | seconds a batch, median | × first | passes | rows | accepted |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = next(iter(results.values()))
    for name, batches in results.items():
        passes, rows = ([n for each in batches for n in getattr(each, kind)] for kind in ("passes", "evaluations"))
        drafted = [entry for each in batches for image in each.rounds for entry in image]
        proposed = sum(entry[1] for entry in drafted)
        kept = f"{100 * sum(entry[2] for entry in drafted) / proposed:.0f} %" if proposed else "–"
        ratio = statistics.median(
            mine.seconds and theirs.seconds / mine.seconds for theirs, mine in zip(first, batches, strict=False)
        )
        lines.append(
            f"| {name} | {'exact' if batches[0].exact else 'approx.'} | {batches[0].steps} | {len(passes)} "
            f"| {statistics.median(each.seconds for each in batches):.2f} | {ratio:.2f} "
            f"| {statistics.mean(passes):.1f} | {statistics.mean(rows):.1f} | {kept} |"
        )
    return "\n".join(lines) + "\n"
