"""The shipped image models: diffusers reads them, speculation samples them exactly, their cards say what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from torch import Tensor

from benchmarks.images.sampling import load_pipeline, network_of
from specpolicy import AdaptiveWindow, BlockVerifier, FreeDrafter, FrozenDrafter, ReverseProcess, SpeculativeSampler
from specpolicy.approximate.asdsv import asdsv_fast
from specpolicy.approximate.specdiff.sampler import cache
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.window import Window

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
FOLDER = CHECKPOINTS / "fashion_mnist"


@pytest.fixture(scope="module")
def pipeline() -> DDPMPipeline:
    return DDPMPipeline.from_pretrained(FOLDER)


@pytest.mark.parametrize(
    ("drafter", "window"), [(FreeDrafter(), AdaptiveWindow()), (FrozenDrafter(), 6)], ids=["free", "frozen"]
)
def test_exact_on_the_shipped_network(pipeline: DDPMPipeline, drafter: Drafter, window: Window) -> None:
    process = ReverseProcess.from_scheduler(pipeline.scheduler, 20)
    sampler = SpeculativeSampler(process, drafter, BlockVerifier(), window)
    generators = [torch.Generator().manual_seed(seed) for seed in range(16)]
    noise = torch.stack([torch.randn(1, 28, 28, generator=each) for each in generators])

    @torch.no_grad()
    def denoiser(x: Tensor, timestep: Tensor, cond: None) -> Tensor:
        return pipeline.unet(x, timestep).sample

    result = sampler(denoiser, noise, generator=generators, record=True)
    assert result.acceptance > 0.2 and result.trajectory is not None
    # x̂0 is evaluated afresh at the recorded states, so that no bookkeeping is trusted
    fresh, plain = [], process.to("cpu", torch.float32)
    for step in range(process.num_steps):
        k, x = torch.full((len(noise),), step), result.trajectory[step]
        fresh.append(plain.x0(x, denoiser(x, plain.timesteps[k], None), k))
    report = check_exactness(process, replace(result, x0=torch.stack(fresh)))
    assert report.smallest > 1e-3, report.p_values


@pytest.mark.parametrize(
    ("name", "most"), [("fashion_mnist", 3e6), ("fashion_mnist_dit", 5e6), ("fashion_mnist_draft", 1e6)]
)
def test_size_and_card(name: str, most: float) -> None:
    folder = CHECKPOINTS / name
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < most
    assert not list(folder.rglob("*.pt")), "the state of a training is not shipped"
    loaded = load_pipeline(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{sum(each.numel() for each in network_of(loaded).parameters()):,} parameters" in card
    last = json.loads((folder / "training.jsonl").read_text().splitlines()[-1])
    assert f"{last['step']} steps" in card and f"{last['validation_loss']:.3f}" in card
    assert loaded.scheduler.config.prediction_type == "v_prediction" and "v-prediction" in card


def test_the_transformer_listens_to_its_classes_and_can_be_cached() -> None:
    loaded = load_pipeline(CHECKPOINTS / "fashion_mnist_dit")
    network: Any = network_of(loaded)
    assert network.config.num_embeds_ada_norm == 10

    def drawn(label: int) -> Tensor:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        call: dict[str, Any] = {"guidance_scale": 1.0, "num_inference_steps": 8, "output_type": "pt"}
        images: Tensor = loaded([label], generator=generator, **call).images
        return images

    trouser, bag = drawn(1), drawn(8)
    assert (trouser - bag).abs().mean() > 0.05, "the same noise"
    with cache(loaded, ratio=0.5) as caching:
        near = drawn(1)
    assert caching.account is not None and caching.account.work < caching.account.passes
    assert 0 < (near - trouser).abs().mean() < 0.5 * (bag - trouser).abs().mean()


def test_the_small_network_drafts_nearly_what_its_teacher_says(pipeline: DDPMPipeline) -> None:
    small: Any = network_of(load_pipeline(CHECKPOINTS / "fashion_mnist_draft"))
    assert 5 * sum(each.numel() for each in small.parameters()) < sum(e.numel() for e in pipeline.unet.parameters())

    @torch.no_grad()
    def target(x: Tensor, timestep: Tensor, cond: None) -> Tensor:
        return pipeline.unet(x, timestep).sample

    @torch.no_grad()
    def draft(x: Tensor, timestep: Tensor, cond: None) -> Tensor:
        return small(x, timestep).sample

    sampler = asdsv_fast(ReverseProcess.from_scheduler(pipeline.scheduler, 20), draft)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    noise = torch.stack([torch.randn(1, 28, 28, generator=each) for each in generators])
    result = sampler(target, noise, generator=generators, record=True)
    assert result.trajectory is not None and not sampler.exact
    x = torch.cat([result.trajectory[step] for step in (0, 5, 10, 15)])
    timestep = sampler.process.timesteps[torch.tensor([0, 5, 10, 15])].repeat_interleave(4)
    said, wanted = draft(x, timestep, None), target(x, timestep, None)
    assert (said - wanted).square().mean() < 0.1 * wanted.square().mean()
