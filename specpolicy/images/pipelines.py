"""Pipelines: read from a folder, set to a sampler, and asked for images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from specpolicy.interop.diffusers import Acceleration, accelerate
from specpolicy.speculative import SampleResult, SchedulerSampler, SequentialSampler, SpeculativeSampler

MakeSampler = Callable[[DDPMScheduler], Any]
"""A recipe of :mod:`specpolicy.recipes`: from a scheduler to a sampler."""


class ModelError(ValueError):
    """There is no pipeline to sample, or it cannot be asked for what is wanted."""


def load_pipeline(folder: str | Path, device: str = "cpu", dtype: str = "float32") -> Any:
    """Read a pipeline that ``save_pretrained`` wrote; nothing is looked for on any network.

    Raises:
        ModelError: the folder holds none, or diffusers cannot read it; a package that it needs is named.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise ModelError(f"no diffusers pipeline at {folder}: there is no model_index.json; give the folder of one")
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), local_files_only=True)
    except Exception as error:  # whatever a component's own loader raises
        raise ModelError(f"the pipeline at {folder} could not be read: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@contextmanager
def contestant(pipeline: Any, make: MakeSampler) -> Iterator[tuple[int, bool, Acceleration | None]]:
    """Set a pipeline to a sampler while the block runs.

    Yields:
        The steps to call it with, whether the sampler is exact, and the acceleration; None if the stock pipeline does
        what the sampler would.

    Raises:
        ModelError: the sampler has no counterpart in a pipeline.
    """
    stock = pipeline.scheduler
    scheduler = stock if type(stock) is DDPMScheduler else DDPMScheduler.from_config(stock.config)
    sampler = make(scheduler)
    try:
        if isinstance(sampler, SpeculativeSampler):
            pipeline.scheduler = scheduler
            with accelerate(pipeline, sampler.drafter, sampler.verifier, sampler.window) as fast:
                yield sampler.process.num_steps, sampler.exact, fast
        elif isinstance(sampler, SequentialSampler):
            pipeline.scheduler = scheduler
            yield sampler.process.num_steps, True, None
        elif isinstance(sampler, SchedulerSampler):
            pipeline.scheduler = sampler.scheduler
            yield sampler.num_inference_steps, False, None
        else:
            raise ModelError(f"{type(sampler).__name__} has no counterpart in a pipeline")
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
    if kind == "DiTPipeline":
        if not labels:
            raise ModelError("a DiTPipeline wants class labels: labels=[207,360]")
        return {"class_labels": [labels[each % len(labels)] for each in images]}
    if kind in ("StableDiffusionPipeline", "LDMTextToImagePipeline"):
        if not prompts:
            raise ModelError(f"a {kind} wants texts: prompts=['a lighthouse at dusk']")
        return {"prompt": [prompts[each % len(prompts)] for each in images]}
    return {"batch_size": len(images)}


def ask(
    pipeline: Any, arguments: Mapping[str, Any], steps: int, seeds: Sequence[int], fast: Acceleration | None
) -> tuple[list[Any], SampleResult]:
    """Call the pipeline once.

    Args:
        arguments: of the call. steps: of the chain. seeds: one for each image. fast: if it is accelerated.

    Returns:
        PIL images, and the account; a stock pipeline's is one pass and one row a step.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(**arguments, num_inference_steps=steps, generator=generators, output_type="pil").images
    if fast is not None and fast.account is not None:
        return images, fast.account
    each = torch.full((len(seeds),), len(pipeline.scheduler.timesteps))
    return images, SampleResult(sample=torch.empty(len(seeds), 0), passes=each, evaluations=each.clone())
