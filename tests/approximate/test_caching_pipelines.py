"""Stock pipelines with cached tokens: guidance, batches, callbacks' schedulers, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_networks as tiny
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from specpolicy.approximate.specdiff.importance import CachingError
from specpolicy.approximate.specdiff.sampler import cache

STEPS = 8


def dit_pipeline(learned_sigma: bool = False, scheduler: Any = None) -> Any:
    network: Any = tiny.dit().network
    if learned_sigma:
        network = DiTTransformer2DModel.from_config({**network.config, "out_channels": 4}).eval()
    torch.manual_seed(1)
    vae = AutoencoderKL(latent_channels=2, layers_per_block=1, block_out_channels=(4,), norm_num_groups=2).eval()
    pipeline = DiTPipeline(network, vae, scheduler or tiny.scheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images(pipeline: Any, labels: tuple[int, ...] = (1, 2), **changes: Any) -> Tensor:
    torch.manual_seed(0)  # the pipeline gives its generator to the first noise alone
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "np", "generator": generator}
    return torch.as_tensor(pipeline(class_labels=list(labels), **(arguments | changes)).images)


class FlowPipeline(DiffusionPipeline):  # type: ignore[misc]
    """As much of the SD3 and FLUX pipelines as caching has to do with: they ask like this, and step like this."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.asked: Any = None

    @torch.no_grad()
    def __call__(self, twice: bool = False) -> Tensor:
        """Sample."""
        self.scheduler.set_timesteps(STEPS)
        x = self.asked.x
        for time in self.scheduler.timesteps:
            output = self.asked.ask(x, float(time))
            if twice:
                output = 2 * output - self.asked.ask(x, float(time))
            x = self.scheduler.step(output, time, x, return_dict=False)[0]
        return x


def flow_pipeline(kind: str) -> Any:
    asked = tiny.NETWORKS[kind]()
    pipeline = FlowPipeline(asked.network, FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipeline.asked = asked
    return pipeline


@pytest.mark.parametrize(
    ("guidance", "learned", "scheduler"),
    [
        (1.0, False, None),
        (2.0, False, None),
        (2.0, True, DDIMScheduler(100, clip_sample=False)),
        (2.0, False, DPMSolverMultistepScheduler(100)),
    ],
)
def test_dit_pipelines_with_their_own_schedulers(guidance: float, learned: bool, scheduler: Any) -> None:
    pipeline = dit_pipeline(learned, scheduler)
    stock = images(pipeline, guidance_scale=guidance)
    with cache(pipeline, ratio=0.0) as caching:
        torch.testing.assert_close(images(pipeline, guidance_scale=guidance), stock, rtol=0, atol=1e-3)
        assert not caching.exact and caching.account is not None and caching.account.passes == STEPS + 2
    with cache(pipeline, ratio=0.5) as caching:
        near = images(pipeline, guidance_scale=guidance)
        assert caching.account is not None and caching.account.work == 3 + (STEPS - 1) / 2
        assert torch.equal(images(pipeline, guidance_scale=guidance), near), "each call has a cache of its own"
    assert not torch.equal(near, stock)
    assert torch.equal(images(pipeline, guidance_scale=guidance), stock), "restored"


@pytest.mark.parametrize("kind", ["sd3", "sd3.5", "flux"])
def test_flow_pipelines(kind: str) -> None:
    pipeline = flow_pipeline(kind)
    stock = pipeline()
    with cache(pipeline, ratio=0.0) as caching:
        torch.testing.assert_close(pipeline(), stock, rtol=1e-3, atol=1e-3)
    errors = []
    for ratio in (0.25, 0.9):
        with cache(pipeline, ratio=ratio) as caching:
            errors.append(float((pipeline() - stock).std() / stock.std()))
            assert caching.account is not None and caching.account.passes == STEPS + 2
    assert 0 < errors[0] < 0.3, errors
    assert torch.equal(pipeline(), stock)


def test_restored_is_the_stock_pipeline(tmp_path: Path) -> None:
    pipeline = dit_pipeline()
    stock, before = images(pipeline), type(pipeline)
    caching = cache(pipeline)
    images(pipeline)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(CachingError, match="already; restore"):
        cache(pipeline)
    caching.restore()
    caching.restore()
    assert type(pipeline) is before is DiTPipeline and "forward" not in vars(pipeline.transformer)
    assert torch.equal(images(pipeline), stock)
    loaded = DiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(images(loaded), stock, rtol=0, atol=1e-5)


def test_an_error_in_the_call_leaves_the_network_alone() -> None:
    pipeline = flow_pipeline("flux")
    stock = pipeline()
    with cache(pipeline), pytest.raises(CachingError, match="ask their network twice a step"):
        pipeline(twice=True)
    assert torch.equal(pipeline(), stock)


def test_rows_at_different_times_and_control_networks_are_refused() -> None:
    pipeline = flow_pipeline("sd3")
    network, asked = pipeline.transformer, pipeline.asked
    given = {
        "hidden_states": asked.x,
        "encoder_hidden_states": torch.zeros(2, 5, 12),
        "pooled_projections": torch.zeros(2, 6),
    }

    def ask(x: Tensor, time: float) -> Tensor:
        return network(**given, **more, return_dict=False)[0]

    pipeline.asked = tiny.Asked(network, asked.x, ask)
    more: dict[str, Any]
    with cache(pipeline):
        more = {"timestep": torch.tensor([1000.0, 900.0])}
        with pytest.raises(CachingError, match="stand at different times"):
            pipeline()
        more = {"timestep": torch.full((2,), 1000.0), "skip_layers": [1]}
        with pytest.raises(CachingError, match=r"\['skip_layers'\] of a pass cannot be cached"):
            pipeline()


def test_pipelines_without_tokens_are_refused() -> None:
    unet = UNet2DModel(8, 1, 1, layers_per_block=1, block_out_channels=(4,), norm_num_groups=2,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    with pytest.raises(CachingError, match="DDPMPipeline has no transformer"):
        cache(DDPMPipeline(unet, tiny.scheduler()))
    pipeline = flow_pipeline("flux")
    pipeline.scheduler = EDMEulerScheduler()
    with pytest.raises(CachingError, match="no way ahead is known"):
        cache(pipeline)
