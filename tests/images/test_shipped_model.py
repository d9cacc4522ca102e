"""The shipped image model: diffusers reads it, speculation samples it exactly, its card says what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline
from torch import Tensor

from specpolicy import AdaptiveWindow, BlockVerifier, FreeDrafter, FrozenDrafter, ReverseProcess, SpeculativeSampler
from specpolicy.evaluation.exactness import check_exactness
from specpolicy.speculative.drafters import Drafter
from specpolicy.speculative.window import Window

FOLDER = Path(__file__).parents[2] / "checkpoints" / "fashion_mnist"


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


def test_size_and_card(pipeline: DDPMPipeline) -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 8e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{sum(each.numel() for each in pipeline.unet.parameters()):,} parameters" in card
    last = json.loads((FOLDER / "training.jsonl").read_text().splitlines()[-1])
    assert f"{last['step']} steps" in card and f"{last['validation_loss']:.3f}" in card
    assert pipeline.scheduler.config.prediction_type == "v_prediction" and "v-prediction" in card
