"""A transformer in pixel space as a pipeline: diffusers' own loop, guidance, speculation, caching, and the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DiTTransformer2DModel
from torch import Tensor

import benchmarks.images.pixels as pixels
from benchmarks.images.command_line import EXIT_USER_ERROR
from benchmarks.images.pixels import PixelDiTPipeline
from benchmarks.images.sample import main
from benchmarks.images.sampling import ModelError, load_pipeline
from specpolicy import accelerate
from specpolicy.approximate.specdiff.sampler import cache

STEPS = 12
CLASSES = 4


def transformer() -> Any:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=1, num_layers=2, norm_num_groups=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=CLASSES,
    ).eval()  # fmt: skip


@pytest.fixture
def pipeline() -> Any:
    made = PixelDiTPipeline(transformer(), DDPMScheduler(1000, prediction_type="v_prediction"))
    made.set_progress_bar_config(disable=True)
    return made


def images(pipeline: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    arguments = {"guidance_scale": 1.0, "num_inference_steps": STEPS, "output_type": "np"}
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipeline([1, 3], generator=generators, **(arguments | changes)).images


def test_the_states_are_the_images(pipeline: Any) -> None:
    found = images(pipeline)
    torch.manual_seed(0)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = pipeline.transformer(x, timestep=t.expand(2), class_labels=torch.tensor([1, 3])).sample
        x = scheduler.step(output, t, x).prev_sample
    np.testing.assert_allclose(found, (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), atol=1e-6)
    assert images(pipeline, output_type="pil")[0].size == (8, 8)


def test_guidance_asks_for_no_class_by_the_networks_own_number(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, forward = list[Tensor](), pipeline.transformer.forward

    def watched(*args: Any, **given: Any) -> Any:
        asked.append(given["class_labels"].clone())
        return forward(*args, **given)

    monkeypatch.setattr(pipeline.transformer, "forward", watched)
    assert not np.allclose(images(pipeline, guidance_scale=6.0), images(pipeline))
    assert len(asked) == 2 * STEPS
    assert all(each.tolist() == [1, 3, CLASSES, CLASSES] for each in asked[:STEPS])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_speculation_and_caching_take_it_for_a_dit(pipeline: Any, scale: float) -> None:
    with accelerate(pipeline, window=4) as fast:
        images(pipeline, guidance_scale=scale)
    # were a condition another object at each step, every step would begin anew, with a pass of its own
    assert fast.account is not None and fast.account.start is not None and int(fast.account.passes.max()) <= STEPS
    with cache(pipeline, ratio=0.0, speculative=0) as caching:
        whole = images(pipeline, guidance_scale=scale)
    assert caching.account is not None and caching.account.passes == STEPS
    np.testing.assert_allclose(whole, images(pipeline, guidance_scale=scale), atol=1e-4)


def test_the_folder(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    assert sorted(each.name for each in (tmp_path / "model").iterdir()) == [
        "model_index.json", "scheduler", "transformer",
    ]  # fmt: skip
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["_class_name"] == "PixelDiTPipeline"
    read = load_pipeline(tmp_path / "model")
    assert type(read) is PixelDiTPipeline
    np.testing.assert_array_equal(images(read), images(pipeline))
    # diffusers alone, with the file of the class
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    file = str(pixels.__file__)
    other = DiffusionPipeline.from_pretrained(tmp_path / "model", custom_pipeline=file, trust_remote_code=True)
    other.set_progress_bar_config(disable=True)
    assert type(other) is not PixelDiTPipeline
    np.testing.assert_array_equal(images(other), images(pipeline))


def test_the_command_samples_it_with_a_cache_beside_the_chain(
    pipeline: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    asked = [f"model={tmp_path / 'model'}", f"out={tmp_path / 'out'}", "sampler=[ddpm,specdiff]"]
    asked += ["sampler.num_inference_steps=6", "images=2", "batch=2"]
    assert main(asked) == EXIT_USER_ERROR
    assert "a PixelDiTPipeline wants class labels: labels=[0,1]" in capsys.readouterr().err
    assert main([*asked, "labels=[0,3]", "guidance_scale=1"]) == 0
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    assert "| exact | 6 | 2 |" in rows["ddpm"] and "| approx. | 6 | 2 |" in rows["specdiff"]
    assert "| 8.0 | 8.0 | – |" in rows["specdiff"], "two passes look ahead"
    assert (tmp_path / "out" / "ddpm" / "00000.png").read_bytes() != (
        tmp_path / "out" / "specdiff" / "00000.png"
    ).read_bytes()


@pytest.mark.parametrize("component", [["antigravity", "Fly"], ["transformer/my_own", "Network"], ["os", "PathLike"]])
def test_a_folder_names_only_known_libraries(pipeline: Any, tmp_path: Path, component: list[str]) -> None:
    """Nothing is imported or run because a folder says so."""
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "transformer" / "my_own.py").write_text("raise SystemExit('executed')\n")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"transformer": component}))
    with pytest.raises(ModelError, match=r"component 'transformer' is of .*; known: diffusers, transformers"):
        load_pipeline(tmp_path / "model")
