"""Pipelines: read from a folder, set to a sampler, and asked for images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DiTPipeline
from torch import nn

from specpolicy.caching import CachedSampler, Caching
from specpolicy.caching.pipelines import CachingAccount
from specpolicy.interop.diffusers import Acceleration, accelerate
from specpolicy.speculative import SampleResult, SchedulerSampler, SequentialSampler, SpeculativeSampler

from .pixels import PixelDiTPipeline

MakeSampler = Callable[[DDPMScheduler], Any]
"""A recipe of :mod:`specpolicy.recipes`: from a scheduler to a sampler."""

Served: TypeAlias = Acceleration | Caching
"""What stands between a pipeline and its network."""


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
        kind = DiffusionPipeline.load_config(folder, local_files_only=True)["_class_name"]
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
            with accelerate(pipeline, sampler.drafter, sampler.verifier, sampler.window) as fast:
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
        speculative passes included.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(**arguments, num_inference_steps=steps, generator=generators, output_type="pil").images
    account = None if served is None else served.account
    if isinstance(account, SampleResult):
        return images, account
    passes = account.passes if isinstance(account, CachingAccount) else len(pipeline.scheduler.timesteps)
    each = torch.full((len(seeds),), passes)
    return images, SampleResult(sample=torch.empty(len(seeds), 0), passes=each, evaluations=each.clone())
