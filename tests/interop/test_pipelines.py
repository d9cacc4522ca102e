"""Stock pipelines without text: accelerated they keep distribution and behaviour, in fewer network evaluations."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
)
from scipy import stats

from specpolicy import AdaptiveWindow, FrozenDrafter, RecyclingDrafter, ReflectionVerifier, accelerate
from specpolicy.approximate.asdsv import ThresholdVerifier
from specpolicy.interop.diffusers.accelerate import acceleration_of
from specpolicy.interop.diffusers.families import (
    FAMILIES,
    Family,
    Guidance,
    PipelineChain,
    UnsupportedPipeline,
    read_chain,
)
from specpolicy.speculative.exactness import check_exactness


class OwnEuler(EulerDiscreteScheduler):
    """Somebody's own name for a scheduler of diffusers."""


STEPS = 12
CALLS: dict[str, dict[str, Any]] = {
    "ddpm": {"batch_size": 3},
    "ddim": {"batch_size": 3, "eta": 1.0},
    "ldm": {"batch_size": 3, "eta": 0.6},
    "dit": {"class_labels": [1, 2, 3], "guidance_scale": 3.0},
}


def call(name: str, pipeline: Any, seeds: tuple[int, ...] = (1, 2, 3), **changes: Any) -> torch.Tensor:
    arguments = {"num_inference_steps": STEPS, "output_type": "np", "generator": tiny.seeded(*seeds)}
    return torch.as_tensor(pipeline(**(arguments | CALLS[name] | changes)).images)


def chain_of(name: str, pipeline: Any) -> PipelineChain:
    kind = type(pipeline.scheduler).__name__
    pipeline.scheduler.set_timesteps(STEPS)
    return read_chain(pipeline.scheduler, kind, CALLS[name].get("eta", 0.0), False)


@pytest.mark.parametrize("name", CALLS)
def test_few_passes_and_the_very_images_of_the_stock_loop_under_the_same_noise(name: str, replay: Any) -> None:
    pipeline = getattr(tiny, name)()
    with accelerate(pipeline, record=True) as fast:
        images = call(name, pipeline)
    assert fast.exact and fast.account is not None
    assert (fast.account.passes < STEPS).all() and fast.account.acceptance > 0
    chain = chain_of(name, pipeline)
    stock = replay(pipeline.scheduler, chain, fast.account, lambda: call(name, pipeline))
    torch.testing.assert_close(images, stock, atol=2e-4, rtol=0)


@pytest.mark.parametrize("clipped", [False, True])
def test_ddim_with_a_clipped_x0(clipped: bool, replay: Any) -> None:
    pipeline = tiny.ddim()
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=True, clip_sample_range=0.1, prediction_type="epsilon"
    )
    with accelerate(pipeline, record=True) as fast:
        images = call("ddim", pipeline, use_clipped_model_output=clipped)
    pipeline.scheduler.set_timesteps(STEPS)
    chain = read_chain(pipeline.scheduler, "DDIMScheduler", 1.0, clipped)
    assert fast.account is not None
    stock = replay(
        pipeline.scheduler, chain, fast.account, lambda: call("ddim", pipeline, use_clipped_model_output=clipped)
    )
    torch.testing.assert_close(images, stock, atol=2e-4, rtol=0)


RECYCLED = {"drafter": RecyclingDrafter(), "verifier": ReflectionVerifier(), "window": 5}


@pytest.mark.parametrize("how", [{"window": AdaptiveWindow(6, min_acceptance=0.3)}, RECYCLED])
@pytest.mark.parametrize(("name", "many"), [("ddpm", {"batch_size": 400}), ("dit", {"class_labels": [7] * 200})])
def test_innovations_are_standard_normal(name: str, many: dict[str, Any], how: dict[str, Any]) -> None:
    pipeline = tiny.ddpm(size=2) if name == "ddpm" else tiny.dit()
    with accelerate(pipeline, record=True, **how) as fast:
        call(name, pipeline, (5,), **many)
    assert fast.account is not None and fast.account.acceptance < 1
    assert check_exactness(chain_of(name, pipeline).process, fast.account).smallest > 1e-3


def test_images_agree_in_distribution_with_the_stock_ones() -> None:
    pipeline = tiny.ddpm(size=2)
    stock = call("ddpm", pipeline, (1,), batch_size=300)
    with accelerate(pipeline, drafter=FrozenDrafter(), verifier=ReflectionVerifier(), window=4):
        fast = call("ddpm", pipeline, (2,), batch_size=300)
    for pixel in range(4):
        first, second = (images.flatten(1)[:, pixel].numpy() for images in (stock, fast))
        assert stats.ks_2samp(first, second).pvalue > 1e-3


def test_hopeless_drafts_cost_what_the_stock_pipeline_costs() -> None:
    """A random network that predicts noise: x̂0 jumps about, in 3072 dimensions nothing is accepted."""
    pipeline = tiny.ddpm(channels=3, size=32)
    pipeline.scheduler = tiny.ddpm_scheduler(prediction_type="epsilon", clip_sample=True)
    with accelerate(pipeline) as fast:
        call("ddpm", pipeline, (1,), batch_size=1, num_inference_steps=60)
    assert fast.account is not None
    assert fast.account.passes.item() <= 63 and fast.account.evaluations.item() <= 63


@pytest.mark.parametrize("name", CALLS)
def test_seeds_belong_to_images(name: str) -> None:
    pipeline, one = getattr(tiny, name)(), {"class_labels": [2]} if name == "dit" else {"batch_size": 1}
    with accelerate(pipeline):
        together, again = call(name, pipeline), call(name, pipeline)
        alone = call(name, pipeline, (2,), **one)
    torch.testing.assert_close(together, again, rtol=0, atol=0)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_a_list_of_one_generator_is_one_generator() -> None:
    pipeline = tiny.ddpm()
    with accelerate(pipeline):
        for batch in (1, 2):
            listed = call("ddpm", pipeline, generator=[tiny.seeded(2)], batch_size=batch)
            torch.testing.assert_close(listed, call("ddpm", pipeline, (2,), batch_size=batch), rtol=0, atol=0)


@pytest.mark.parametrize("name", CALLS)
def test_restored_bit_for_bit(name: str) -> None:
    pipeline = getattr(tiny, name)()
    torch.manual_seed(0)  # some stock pipelines leave their generator out of the steps
    stock_class, before = type(pipeline), call(name, pipeline, (1,))
    with accelerate(pipeline) as fast:
        assert type(pipeline) is not stock_class and isinstance(pipeline, stock_class)
        call(name, pipeline, (1,))
    fast.restore()
    assert type(pipeline) is stock_class
    network = getattr(pipeline, FAMILIES[stock_class.__name__].network)
    assert "forward" not in vars(network)
    assert not {"step", "scale_model_input"} & vars(pipeline.scheduler).keys()
    torch.manual_seed(0)
    torch.testing.assert_close(call(name, pipeline, (1,)), before, rtol=0, atol=0)


def test_restored_after_an_error() -> None:
    pipeline = tiny.ddpm()
    with pytest.raises(RuntimeError, match="power cut"), accelerate(pipeline):
        pipeline.unet.mid_block.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        call("ddpm", pipeline)
    assert type(pipeline).__call__.__qualname__ == "DDPMPipeline.__call__" and "forward" not in vars(pipeline.unet)
    assert "step" not in vars(pipeline.scheduler)


@pytest.mark.parametrize("name", CALLS)
def test_saved_while_accelerated_and_loaded_as_a_stock_pipeline(name: str, tmp_path: Path) -> None:
    pipeline = getattr(tiny, name)()
    with accelerate(pipeline):
        images = call(name, pipeline)
        pipeline.save_pretrained(tmp_path)
    loaded = tiny.quiet(type(pipeline).from_pretrained(tmp_path))
    assert type(loaded) is type(pipeline)
    with accelerate(loaded):
        torch.testing.assert_close(call(name, loaded), images, rtol=0, atol=1e-5)


def test_output_types_and_tuples() -> None:
    pipeline = tiny.ddpm(channels=3)
    with accelerate(pipeline):
        pil = pipeline(2, generator=tiny.seeded(1), num_inference_steps=5).images
        array = pipeline(2, generator=tiny.seeded(1), num_inference_steps=5, output_type="np").images
        (tensor,) = pipeline(2, generator=tiny.seeded(1), num_inference_steps=5, output_type="pt", return_dict=False)
    assert pil[0].size == (4, 4) and array.shape == (2, 4, 4, 3) and tensor.shape == (2, 3, 4, 4)
    torch.testing.assert_close(torch.as_tensor(array), tensor.permute(0, 2, 3, 1))


def test_the_progress_bar_counts_steps() -> None:
    pipeline, text = tiny.ddpm(), io.StringIO()
    pipeline.set_progress_bar_config(file=text, mininterval=0)
    with accelerate(pipeline):
        call("ddpm", pipeline)
    assert f"{STEPS}/{STEPS}" in text.getvalue()


def test_half_precision() -> None:
    pipeline = tiny.ddpm().to(torch.bfloat16)
    with accelerate(pipeline) as fast:
        image = pipeline(generator=tiny.seeded(1), num_inference_steps=30, output_type="pt").images
    assert image.dtype == torch.bfloat16 and fast.account is not None and fast.account.passes.item() < 30


def test_dit_without_learned_sigma_and_without_guidance() -> None:
    pipeline = tiny.dit(learned_sigma=False)
    with accelerate(pipeline) as fast:
        call("dit", pipeline, guidance_scale=1.0)
    assert fast.account is not None and (fast.account.passes < STEPS).all()


# ---- schedulers


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 7), ("trailing", 20), ("leading", 12)])
def test_ancestral_euler_is_a_gaussian_chain(prediction: str, spacing: str, steps: int, replay: Any) -> None:
    scheduler = EulerAncestralDiscreteScheduler(100, prediction_type=prediction, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    chain = read_chain(scheduler, "EulerAncestralDiscreteScheduler", 0.0, False)
    process, generator = chain.process, torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, generator=generator) * scheduler.init_noise_sigma
    for k, t in enumerate(scheduler.timesteps):
        position = torch.full((2,), k)
        torch.testing.assert_close((x * chain.input_scale[k]).float(), scheduler.scale_model_input(x, t))
        output = torch.randn(2, 3, generator=generator)
        state = torch.get_rng_state()
        there = scheduler.step(output, t, x).prev_sample
        torch.set_rng_state(state)
        noise = torch.randn(2, 3)
        x0 = process.x0(x.double(), output.double(), position)
        here = process.mean(x.double(), x0, position) + process.sigma[k] * noise
        torch.testing.assert_close(here.float(), there, rtol=2e-4, atol=2e-4)
        x = there


def test_the_scheduler_may_be_changed_on_the_way() -> None:
    pipeline = tiny.ldm()
    with accelerate(pipeline) as fast:
        pipeline.scheduler = tiny.ddpm_scheduler()
        call("ldm", pipeline)
        assert fast.account is not None and (fast.account.passes < STEPS).all()
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        with pytest.raises(UnsupportedPipeline, match="deterministic"):
            call("ldm", pipeline)


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (EulerDiscreteScheduler(100), "EulerDiscreteScheduler is deterministic: there is no noise"),
        (DPMSolverMultistepScheduler(100), "deterministic.*DDPMScheduler.from_config"),
        (
            DPMSolverMultistepScheduler(100, algorithm_type="sde-dpmsolver++"),
            "algorithm_type='sde-dpm.*draws noise",
        ),
        (FlowMatchEulerDiscreteScheduler(100), "integrates a flow-matching model.*trained with a DDPM noise schedule$"),
        (OwnEuler(100), "OwnEuler is deterministic"),
        (KDPM2AncestralDiscreteScheduler(100), "not known to be"),
        (DDIMScheduler(100), "takes no eta"),
        (EulerAncestralDiscreteScheduler(100), "does not scale its latents"),
    ],
)
def test_schedulers_that_do_not_fit_are_refused_at_once(scheduler: Any, says: str) -> None:
    pipeline = tiny.ddpm()
    pipeline.scheduler = scheduler
    with pytest.raises(UnsupportedPipeline, match=says):
        accelerate(pipeline)
    assert type(pipeline).__call__.__qualname__ == "DDPMPipeline.__call__"


def test_deterministic_ddim_is_refused_by_the_call() -> None:
    pipeline = tiny.ddim()
    with accelerate(pipeline), pytest.raises(UnsupportedPipeline, match=r"eta=0.0 is deterministic"):
        call("ddim", pipeline, eta=0.0)


def test_a_learned_variance_is_refused() -> None:
    pipeline = tiny.ddpm(out_channels=2)
    with pytest.raises(UnsupportedPipeline, match=r"1 channels with 2.*learned variance"):
        accelerate(pipeline)
    pipeline = tiny.dit()
    pipeline.scheduler = DDPMScheduler(100, variance_type="learned_range")
    with accelerate(pipeline), pytest.raises(UnsupportedPipeline, match="must not depend on the network"):
        call("dit", pipeline)


def test_other_pipelines_are_refused() -> None:
    class Mine(DDPMPipeline):  # type: ignore[misc]
        def __call__(self) -> None:
            """A loop of its own."""

    with pytest.raises(UnsupportedPipeline, match=r"Mine runs a denoising loop that is not known here; .*DiTPipeline"):
        accelerate(Mine(tiny.unet(), tiny.ddpm_scheduler()))


def test_twice_is_refused() -> None:
    pipeline = tiny.ddpm()
    with accelerate(pipeline), pytest.raises(UnsupportedPipeline, match="already"):
        accelerate(pipeline)


def test_a_threshold_is_no_exact_verifier() -> None:
    with pytest.raises(TypeError, match=r"see approximate\(\)"):
        accelerate(tiny.ddpm(), verifier=ThresholdVerifier(0.1))  # type: ignore[arg-type]


def test_guidance_of_another_kind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the pipeline put its branches in another order one day."""
    pipeline = tiny.dit()
    torch.nn.init.normal_(pipeline.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight)
    wrong = Family("transformer", lambda *_: Guidance(2, conditional=1, scale=9.0), drops_variance=True)
    monkeypatch.setitem(FAMILIES, "DiTPipeline", wrong)
    with accelerate(pipeline), pytest.raises(RuntimeError, match="another prediction"):
        call("dit", pipeline, guidance_scale=9.0)


@pytest.mark.parametrize("name", CALLS)
def test_a_pickled_pipeline_is_accelerated_like_the_first(name: str) -> None:
    pipeline = getattr(tiny, name)()
    with accelerate(pipeline, drafter=FrozenDrafter(), verifier=ReflectionVerifier(), window=3) as fast:
        images = call(name, pipeline)
        for other in (pickle.loads(pickle.dumps(pipeline)), copy.deepcopy(pipeline)):
            theirs = acceleration_of(other)
            assert theirs is not None and theirs is not fast and theirs.pipeline is other and theirs.exact
            assert torch.equal(call(name, other), images)
            assert torch.equal(theirs.account.passes, fast.account.passes)
            theirs.restore()
            assert type(other) is fast._stock and acceleration_of(other) is None
        assert torch.equal(call(name, pipeline), images), "the first is as it was"
    assert type(pickle.loads(pickle.dumps(pipeline))) is type(pipeline)


def test_the_handle_is_pickled_with_its_pipeline() -> None:
    fast = accelerate(tiny.ddpm())
    other = pickle.loads(pickle.dumps(fast))
    assert other.pipeline is not fast.pipeline and acceleration_of(other.pipeline) is other


def test_a_pipeline_and_its_network_in_several_threads() -> None:
    """The accelerated pipeline, and a stock one of the same network, at once: images are those of either alone."""
    pipeline = tiny.ddpm()
    stock = DDPMPipeline(pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config))
    stock.set_progress_bar_config(disable=True)
    expected = {seed: call("ddpm", stock, (seed,), batch_size=1) for seed in range(4)}
    with accelerate(pipeline) as fast:
        alone = {seed: call("ddpm", pipeline, (seed,), batch_size=1) for seed in range(4)}
        passes = {}

        def sample(seed: int) -> torch.Tensor:
            images = call("ddpm", pipeline, (seed,), batch_size=1)
            assert fast.account is not None
            passes[seed] = int(fast.account.passes[0])
            return images

        with ThreadPoolExecutor(4) as pool:
            ours = [pool.submit(sample, seed) for seed in range(4)]
            theirs = [pool.submit(call, "ddpm", stock, (seed,), batch_size=1) for seed in range(4)]
            assert all(torch.equal(each.result(60), alone[seed]) for seed, each in enumerate(ours))
            assert all(torch.equal(each.result(60), expected[seed]) for seed, each in enumerate(theirs))
        assert set(passes) == set(range(4)) and max(passes.values()) <= STEPS + 1
    assert "forward" not in vars(pipeline.unet) and "step" not in vars(pipeline.scheduler)
