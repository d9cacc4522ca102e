"""Stable Diffusion's pipeline: guidance, rescaled guidance, callbacks that read and that change things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler

from specpolicy import AdaptiveWindow, accelerate
from specpolicy.interop.diffusers.families import read_chain
from specpolicy.speculative.exactness import check_exactness

pytest.importorskip("transformers", reason="diffusers has StableDiffusionPipeline only beside transformers")

STEPS = 12


@pytest.fixture
def pipeline() -> Any:
    return tiny.stable_diffusion()


def call(pipeline: Any, seeds: tuple[int, ...] = (1, 2), **changes: Any) -> torch.Tensor:
    prompts = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(9)).repeat(1, len(seeds), 1, 1)
    arguments = {
        "prompt_embeds": prompts[0],
        "negative_prompt_embeds": prompts[1],
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": tiny.seeded(*seeds),
        "output_type": "np",
    }
    return torch.as_tensor(pipeline(**(arguments | changes)).images)


SCHEDULES = {
    "DDPMScheduler": {},
    "DDIMScheduler": {"eta": 0.7},
    "EulerAncestralDiscreteScheduler": {},
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 1.0}, {"guidance_rescale": 0.7}])
def test_few_passes_and_the_very_images_of_the_stock_loop_under_the_same_noise(
    pipeline: Any, kind: str, guidance: dict[str, Any], replay: Any
) -> None:
    if kind == "DDIMScheduler":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    elif kind == "EulerAncestralDiscreteScheduler":
        pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(
            pipeline.scheduler.config, prediction_type="v_prediction"
        )
    arguments = SCHEDULES[kind] | guidance
    with accelerate(pipeline, window=AdaptiveWindow(), record=True) as fast:
        images = call(pipeline, **arguments)
    assert fast.account is not None
    assert fast.account.passes.sum() < 2 * STEPS
    pipeline.scheduler.set_timesteps(STEPS)
    chain = read_chain(pipeline.scheduler, kind, arguments.get("eta", 0.0), False)
    stock = replay(pipeline.scheduler, chain, fast.account, lambda: call(pipeline, **arguments))
    torch.testing.assert_close(images, stock, atol=1e-3, rtol=0)


def test_innovations_are_standard_normal(pipeline: Any) -> None:
    with accelerate(pipeline, record=True) as fast:
        call(pipeline, (3,), prompt_embeds=torch.zeros(60, 5, 8), negative_prompt_embeds=torch.ones(60, 5, 8))
    pipeline.scheduler.set_timesteps(STEPS)
    chain = read_chain(pipeline.scheduler, "DDPMScheduler", 0.0, False)
    assert fast.account is not None and fast.account.acceptance < 1
    assert check_exactness(chain.process, fast.account).smallest > 1e-3


def test_callbacks_see_every_step_in_order(pipeline: Any) -> None:
    seen: list[tuple[int, int, torch.Tensor]] = []

    def note(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, int(timestep), tensors["latents"]))
        return {}

    with accelerate(pipeline, window=AdaptiveWindow(), record=True) as fast:
        call(pipeline, callback_on_step_end=note)
    assert [step for step, _, _ in seen] == list(range(STEPS))
    assert [timestep for _, timestep, _ in seen] == pipeline.scheduler.timesteps.tolist()
    assert fast.account is not None and fast.account.trajectory is not None
    torch.testing.assert_close(torch.stack([latents for _, _, latents in seen]), fast.account.trajectory[1:])
    assert (fast.account.passes < STEPS).all()


def test_a_callback_may_change_the_state(pipeline: Any) -> None:
    """The state is put back to zero half way: from there on the chain is a new one, of the distribution from there."""

    def note(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"])
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 5 else {}

    def noise(after: int) -> torch.Tensor:
        """Innovations of the step that follows position ``after``."""
        state = torch.zeros_like(states[0]) if after == 6 else states[after - 1]
        process, k = chain.process, torch.full((len(state),), after)
        prompts = torch.ones(2 * len(state), 5, 8)
        output = pipeline.unet(state.repeat(2, 1, 1, 1), chain.timesteps[after], prompts, return_dict=False)[0]
        free, given = output.chunk(2)
        x0 = process.x0(state.double(), (free + 4.0 * (given - free)).double(), k)
        return (states[after].double() - process.mean(state.double(), x0, k)) / process.sigma[after]

    states: list[torch.Tensor] = []
    prompts = torch.ones(40, 5, 8)
    with accelerate(pipeline) as fast:
        call(pipeline, (1,), prompt_embeds=prompts, negative_prompt_embeds=prompts, callback_on_step_end=note)
    assert fast.account is not None and len(states) == STEPS
    pipeline.scheduler.set_timesteps(STEPS)
    chain = read_chain(pipeline.scheduler, "DDPMScheduler", 0.0, False)
    with torch.no_grad():
        for after in (5, 6, 7):
            z = noise(after)
            assert abs(z.mean()) < 4 / z.numel() ** 0.5 and abs(z.var() - 1) < 5 * (2 / z.numel()) ** 0.5


def test_a_callback_may_switch_guidance_off(pipeline: Any) -> None:
    from diffusers.callbacks import SDCFGCutoffCallback

    with accelerate(pipeline, window=AdaptiveWindow()) as fast:
        cut = call(pipeline, (1,), callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))
        assert fast.account is not None
        assert fast.account.trajectory is None and (fast.account.passes < STEPS).all()
        whole = call(pipeline, (1,))
    assert not torch.allclose(cut, whole)


def test_a_callback_may_stop_the_loop(pipeline: Any) -> None:
    def stop(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"])
        pipeline._interrupt = step == 3
        return {}

    latents: list[torch.Tensor] = []
    with accelerate(pipeline, record=True) as fast:
        images = call(pipeline, callback_on_step_end=stop, output_type="latent")
    assert len(latents) == 4 and fast.account is not None and fast.account.trajectory is None
    torch.testing.assert_close(images, latents[-1])


def test_saved_loaded_and_restored(pipeline: Any, tmp_path: Path) -> None:
    before = call(pipeline)
    with accelerate(pipeline):
        images = call(pipeline)
        pipeline.save_pretrained(tmp_path)
    torch.testing.assert_close(call(pipeline), before, rtol=0, atol=0)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
    loaded = tiny.quiet(type(pipeline).from_pretrained(tmp_path, **absent))
    with accelerate(loaded):
        torch.testing.assert_close(call(loaded), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(call(loaded), before, rtol=0, atol=1e-5)
