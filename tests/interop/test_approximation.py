"""A smaller network drafts for a pipeline: approximate, counted apart, and undone like the exact kind."""

from __future__ import annotations

import math

import pytest
import tiny_pipelines as tiny
import torch

from specpolicy.approximate.asdsv import AsdsvResult, DraftSchedule, ThresholdVerifier
from specpolicy.interop.diffusers.accelerate import approximate
from specpolicy.interop.diffusers.families import UnsupportedPipeline

STAGES = DraftSchedule(alone=0.1, warm_up=0.2, short=2, long=5)


def test_the_same_network_drafts_all_and_another_nothing() -> None:
    pipeline = tiny.ddpm()
    counts = []
    for draft in (tiny.unet(), tiny.unet(block_out_channels=(2,))):
        with approximate(pipeline, draft, ThresholdVerifier(1e-3), STAGES) as fast:
            images = pipeline(2, generator=tiny.seeded(1, 2), num_inference_steps=20, output_type="pt").images
        assert not fast.exact and isinstance(fast.account, AsdsvResult) and images.shape == (2, 1, 4, 4)
        counts.append(fast.account.passes.tolist())
    assert counts == [[8, 8], [20, 20]]  # 2 alone, a first look, 2 + 3 drafts; the other network is never close


def test_guidance_and_conditions_reach_the_draft() -> None:
    pipeline = tiny.dit()
    with approximate(pipeline, tiny.dit().transformer, ThresholdVerifier(1e-3), STAGES) as fast:
        pipeline([3, 4], guidance_scale=3.0, generator=tiny.seeded(1, 2), num_inference_steps=20, output_type="np")
    assert fast.account is not None and fast.account.acceptance == 1.0


def test_fast_never_looks() -> None:
    pipeline = tiny.ddpm()
    with approximate(pipeline, tiny.unet(), ThresholdVerifier(math.inf), STAGES, record=True) as fast:
        image = pipeline(generator=tiny.seeded(1), num_inference_steps=20, output_type="pt").images
    assert fast.account is not None and fast.account.passes.item() == 2 and fast.account.trajectory is not None
    torch.testing.assert_close(image, (fast.account.trajectory[-1] / 2 + 0.5).clamp(0, 1))


def test_a_draft_network_of_other_channels_is_refused() -> None:
    with pytest.raises(UnsupportedPipeline, match="answers 1 channels with 2"):
        approximate(tiny.ddpm(), tiny.unet(out_channels=2), ThresholdVerifier(0.1))
