"""Sampling the same images with several samplers."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DiTPipeline
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import nn

from benchmarks.images.pixels import PixelDiTPipeline
from specpolicy.approximate.specdiff.sampler import CachedSampler, Caching, CachingAccount
from specpolicy.interop.diffusers.accelerate import Acceleration, accelerate_pipeline
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SequentialSampler, SpeculativeSampler
from specpolicy.speculative.scheduler_sampler import SchedulerSampler
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

MakeSampler = Callable[[DDPMScheduler], Any]
"""A recipe of :mod:`specpolicy.samplers`: from a scheduler to a sampler."""

Served: TypeAlias = Acceleration | Caching
"""What stands between a pipeline and its network."""


LIBRARIES = ("diffusers", "transformers")
"""Whose classes a pipeline's folder may name: nothing else is imported, and no code from the folder is run."""


class ModelError(ValueError):
    """There is no pipeline to sample, or it cannot be asked for what is wanted."""


def load_pipeline(folder: str | Path, device: str = "cpu", dtype: str = "float32") -> Any:
    """Read a pipeline that ``save_pretrained`` wrote, diffusers' or :class:`PixelDiTPipeline`; no network is asked.

    Raises:
        ModelError: the folder holds none, or diffusers cannot read it; a package that it needs is named.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise ModelError(f"no diffusers pipeline at {folder}: there is no model_index.json; give the folder of one")
    try:
        index = DiffusionPipeline.load_config(folder, local_files_only=True)
        kind = index["_class_name"]
        for name, component in index.items():
            library = component[0] if isinstance(component, list | tuple) and component else None
            if library not in (None, *LIBRARIES) and not hasattr(diffusers.pipelines, str(library)):
                raise ModelError(f"its component {name!r} is of {library!r}; known: {', '.join(LIBRARIES)}")
        reader = PixelDiTPipeline if kind == PixelDiTPipeline.__name__ else DiffusionPipeline
        pipeline = reader.from_pretrained(folder, torch_dtype=getattr(torch, dtype), local_files_only=True)
    except Exception as error:  # whatever a component's own loader raises
        raise ModelError(f"the pipeline at {folder} could not be read: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def network_of(pipeline: Any) -> nn.Module:
    """The network that a pipeline denoises with.

    Raises:
        ModelError: it has none under a name that is known.
    """
    for name in ("unet", "transformer"):
        if isinstance(found := getattr(pipeline, name, None), nn.Module):
            return found
    raise ModelError(f"{type(pipeline).__name__} has neither a unet nor a transformer")


@contextmanager
def contestant(pipeline: Any, make: MakeSampler) -> Iterator[tuple[int, bool, Served | None]]:
    """Set a pipeline to a sampler while the block runs.

    Yields:
        The steps to call it with, whether the sampler is exact, and what serves the pipeline; None if the stock one
        does what the sampler would.

    Raises:
        ModelError: the sampler has no counterpart in a pipeline.
        CachingError, PipelineRefused: it does not fit this one.
    """
    stock = pipeline.scheduler
    scheduler = stock if type(stock) is DDPMScheduler else DDPMScheduler.from_config(stock.config)
    sampler = make(scheduler)
    inner: Any = sampler.inner if isinstance(sampler, CachedSampler) else sampler
    few = isinstance(inner, SchedulerSampler)
    if not few and not isinstance(inner, SequentialSampler | SpeculativeSampler):
        raise ModelError(f"{type(sampler).__name__} has no counterpart in a pipeline")
    steps = inner.num_inference_steps if few else inner.process.num_steps
    pipeline.scheduler = inner.scheduler if few else scheduler
    try:
        if isinstance(sampler, SpeculativeSampler):
            with accelerate_pipeline(pipeline, sampler.drafter, sampler.verifier, sampler.window) as fast:
                yield steps, sampler.exact, fast
        elif isinstance(sampler, CachedSampler):
            with Caching(pipeline, sampler.settings) as caching:
                yield steps, False, caching
        else:
            yield steps, not few, None
    finally:
        pipeline.scheduler = stock


def call_arguments(
    pipeline: Any, images: Sequence[int], labels: Sequence[int], prompts: Sequence[str]
) -> dict[str, Any]:
    """How this kind of pipeline is asked for these images; labels and prompts take turns.

    Raises:
        ModelError: it wants labels or prompts and there are none.
    """
    kind = type(pipeline).__name__
    if isinstance(pipeline, DiTPipeline):
        if not labels:
            raise ModelError(f"a {kind} wants class labels: labels=[0,1]")
        return {"class_labels": [labels[each % len(labels)] for each in images]}
    if kind in ("StableDiffusionPipeline", "LDMTextToImagePipeline"):
        if not prompts:
            raise ModelError(f"a {kind} wants texts: prompts=['a lighthouse at dusk']")
        return {"prompt": [prompts[each % len(prompts)] for each in images]}
    return {"batch_size": len(images)}


def ask(
    pipeline: Any, arguments: Mapping[str, Any], steps: int, seeds: Sequence[int], served: Served | None
) -> tuple[list[Any], SampleResult]:
    """Call the pipeline once.

    Args:
        arguments: of the call. steps: of the chain. seeds: one for each image. served: by what, if at all.

    Returns:
        PIL images, and the account; a stock pipeline's is one pass and one row a step, and a cached one's likewise,
        speculative evaluations included.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(**arguments, num_inference_steps=steps, generator=generators, output_type="pil").images
    account = None if served is None else served.account
    if isinstance(account, SampleResult):
        return images, account
    passes = account.passes if isinstance(account, CachingAccount) else len(pipeline.scheduler.timesteps)
    each = torch.full((len(seeds),), passes)
    return images, SampleResult(sample=torch.empty(len(seeds), 0), passes=each, evaluations=each.clone())


@dataclass(frozen=True)
class Batch:
    """One call of a pipeline.

    Attributes:
        images: numbers of its images. seconds: of the whole call, decoding included.
        steps: of the chain. exact: whether it samples the distribution of that chain.
        passes, evaluations: of each image: sequential network evaluations, and states that the network was asked about.
        rounds: for each image ``[position, drafted, accepted]`` of each round; empty for stock pipelines.
    """

    images: list[int]
    seconds: float
    steps: int
    exact: bool
    passes: list[int]
    evaluations: list[int]
    rounds: list[list[list[int]]] = field(default_factory=list)

    @staticmethod
    def of(images: list[int], seconds: float, steps: int, exact: bool, account: SampleResult) -> Batch:
        """Take the numbers out of a sampler's account."""
        rounds: list[list[list[int]]] = []
        if account.start is not None and account.proposed is not None and account.accepted is not None:
            columns = zip(account.start.T, account.proposed.T, account.accepted.T, strict=True)
            rounds = [
                [list(map(int, row)) for row in zip(*column, strict=True) if int(row[0]) >= 0] for column in columns
            ]
        return Batch(images, seconds, steps, exact, account.passes.tolist(), account.evaluations.tolist(), rounds)


class Folder:
    """The results of one job: settings, and for each sampler its images and batches.

    Raises:
        ValueError: the folder holds results of other settings; the message names them.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, known = path, path / "settings.json"
        path.mkdir(parents=True, exist_ok=True)
        if known.is_file():
            there = json.loads(known.read_text(encoding="utf-8"))
            other = sorted(name for name in settings if there.get(name) != settings[name])
            if other:
                raise ValueError(
                    f"{path} holds images of other settings ({', '.join(other)}); give another folder, out=..."
                )
        else:
            with atomic_path(known) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def image(self, sampler: str, number: int) -> Path:
        """Where an image is."""
        return self.path / sampler / f"{number:05d}.png"

    def batches(self, sampler: str) -> list[Batch]:
        """The batches that are complete."""
        file = self.path / sampler / "batches.json"
        if not file.is_file():
            return []
        return [Batch(**each) for each in json.loads(file.read_text(encoding="utf-8"))]

    def add(self, sampler: str, batch: Batch, images: list[Any]) -> None:
        """Keep a batch: its images first, then its entry."""
        (self.path / sampler).mkdir(exist_ok=True)
        for number, image in zip(batch.images, images, strict=True):
            with atomic_path(self.image(sampler, number)) as temporary:
                image.save(temporary, format="png")
        with atomic_path(self.path / sampler / "batches.json") as temporary:
            kept = [asdict(each) for each in [*self.batches(sampler), batch]]
            temporary.write_text(json.dumps(kept) + "\n", encoding="utf-8")


PARTS = 20


def image_grid(rows: Mapping[str, Sequence[Path]], least: int = 64) -> Image.Image:
    """One row of images for each sampler, with its name above.

    Args:
        rows: image files by sampler; all of one size.
        least: smaller images are enlarged to at least so many pixels, by whole factors.
    """
    with Image.open(next(iter(rows.values()))[0]) as first:
        width, height = first.size
    factor = max(1, -(-least // max(width, height)))
    width, height, gap, head = width * factor, height * factor, 4, 16
    columns = max(len(files) for files in rows.values())
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + head + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, files) in enumerate(rows.items()):
        top = row * (height + head + gap)
        pen.text((gap, top + 2), name, fill="black")
        for column, file in enumerate(files):
            with Image.open(file) as image:
                shown = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (gap + column * (width + gap), top + head))
    return sheet


def acceptance_figure(results: Mapping[str, Sequence[Batch]]) -> Figure:
    """Left: drafted and kept steps a round along the chain. Right: NFE and rows of an image, in chain lengths."""
    figure = Figure(figsize=(9, 3.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    along, spent = figure.subplots(1, 2)
    for number, (name, batches) in enumerate(results.items()):
        colour = f"C{number % 10}"
        entries = np.array([entry for each in batches for image in each.rounds for entry in image], dtype=float)
        if len(entries):
            steps = batches[0].steps
            part = np.minimum(entries[:, 0] * PARTS // steps, PARTS - 1)
            here = [part == each for each in range(PARTS)]
            middle = (np.arange(PARTS) + 0.5) / PARTS
            for column, style, what in ((1, ":", "drafted"), (2, "-", "kept")):
                mean = [entries[at, column].mean() if at.any() else np.nan for at in here]
                along.plot(middle, mean, style, color=colour, marker=".", label=f"{name}, {what}")
        shares = [
            np.mean([n for each in batches for n in getattr(each, kind)]) / batches[0].steps
            for kind in ("passes", "evaluations")
        ]
        spent.bar([number - 0.2, number + 0.2], shares, width=0.38, color=[colour, "lightgrey"], edgecolor=colour)
    along.set(xlabel="position in the chain (0 is noise)", ylabel="steps a round", ylim=(0, None))
    if along.get_legend_handles_labels()[0]:
        along.legend(fontsize=8)
    spent.axhline(1.0, color="black", linewidth=0.8)
    spent.set_xticks(range(len(results)), list(results))
    spent.set(ylabel="share of the chain's steps", title="NFE (full) and rows (grey)")
    return figure


@dataclass(frozen=True)
class ImageJob:
    """What to sample.

    Attributes:
        samplers: recipes by name. settings: all that the results depend on, in plain types, to know them again by.
        images: number of images. batch: of them that share a call. seed: image i belongs to ``seed + i``.
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
        "| sampler | distribution | steps | images | seconds a batch, median | × first | NFE | rows | accepted |",
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
