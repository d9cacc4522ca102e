"""``benchmarks.images.train``: what it writes, diffusers reads; a killed run goes on; mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from idx_files import write_dataset
from torch import Tensor

from benchmarks.images.command_line import EXIT_USER_ERROR
from benchmarks.images.pixels import PixelDiTPipeline
from benchmarks.images.sampling import load_pipeline, network_of
from benchmarks.images.train import main
from benchmarks.images.training import image_lesson, read_images
from specpolicy.training.loop import TrainingLoop, TrainingSettings

UNET = [
    "network.sample_size=8",
    "network.block_out_channels=[8,16]",
    "network.down_block_types=[DownBlock2D,DownBlock2D]",
    "network.up_block_types=[UpBlock2D,UpBlock2D]",
    "network.norm_num_groups=4",
]
DIT = ["network=dit", "network.sample_size=8", "network.num_layers=1", "network.num_attention_heads=2",
       "network.attention_head_dim=8", "network.num_embeds_ada_norm=4"]  # fmt: skip
BRIEF = ["training.batch_size=8", "training.warmup_steps=2", "training.save_every=4", "training.bfloat16=false"]


def arguments(data: Path, out: Path, network: list[str], steps: int, *more: str) -> list[str]:
    return [f"data={data}", f"out={out}", *network, *BRIEF, f"training.steps={steps}", *more]


def weights(out: Path) -> dict[str, Tensor]:
    state = torch.load(out / "training.pt", weights_only=True)
    return {**state["network"], **{f"average {name}": value for name, value in state["average"].items()}}


def test_a_pipeline_that_diffusers_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    assert main(arguments(data, out, UNET, 60, "training.learning_rate=1e-2", "training.save_every=20")) == 0
    assert f"model in {out}" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["validation_loss"] < 0.9 * lines[0]["validation_loss"]
    pipeline = DDPMPipeline.from_pretrained(out)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=5, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    averages = torch.load(out / "training.pt", weights_only=True)["average"]
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, averages[f"module.{name}"]), name


def test_a_transformer_is_taught_with_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    forward, seen = DiTTransformer2DModel.forward, list[tuple[Tensor, Tensor]]()

    def watched(network: Any, noisy: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> Any:
        early = timestep < 200  # the square is still there to be seen
        seen.append((noisy[early], class_labels[early]))
        return forward(network, noisy, timestep, class_labels, return_dict=return_dict)

    monkeypatch.setattr(DiTTransformer2DModel, "forward", watched)
    assert main(arguments(data, out, DIT, 4)) == 0
    monkeypatch.setattr(DiTTransformer2DModel, "forward", forward)
    noisy, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    quarters = noisy.view(-1, 2, 4, 2, 4).mean((2, 4)).flatten(1)
    assert len(labels) >= 6 and torch.equal(quarters.argmax(1), labels)
    network = DiTTransformer2DModel.from_pretrained(out / "transformer")
    averages = torch.load(out / "training.pt", weights_only=True)["average"]
    assert all(torch.equal(value, averages[f"module.{name}"]) for name, value in network.state_dict().items())
    assert DDPMScheduler.from_pretrained(out / "scheduler").config.num_train_timesteps == 1000
    pipeline = load_pipeline(out)
    assert isinstance(pipeline, PixelDiTPipeline)
    assert pipeline([0, 3], guidance_scale=1.0, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("taught", [UNET, DIT], ids=["by a unet", "by a dit"])
def test_a_pupil_learns_what_its_teacher_says(
    tmp_path: Path, taught: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data, master, out = write_dataset(tmp_path / "data"), tmp_path / "master", tmp_path / "out"
    assert main(arguments(data, master, taught, 2)) == 0
    small = [*UNET[:1], "network=unet_draft", "network.block_out_channels=[4,8]", *UNET[2:4]]
    more = [f"teacher={master}", "training.learning_rate=1e-2", "training.save_every=30"]
    assert main(arguments(data, out, small, 60, *more)) == 0
    teacher, pupil = (network_of(load_pipeline(each)).eval() for each in (master, out))
    images, scheduler = read_images(data, "t10k"), load_pipeline(out).scheduler
    of_teacher, of_data = (
        image_lesson(scheduler, images, images, "cpu", lambda *_: None, {}, each) for each in (teacher, None)
    )
    with torch.no_grad():
        from_teacher, from_data = (
            each.validation(pupil, torch.arange(12), torch.Generator().manual_seed(5)) for each in (of_teacher, of_data)
        )
    # the master was hardly taught: who says what it says knows little of the data
    assert from_teacher < 0.5 * from_data
    last = json.loads((out / "training.jsonl").read_text().splitlines()[-1])
    assert last["validation_loss"] < 0.5 * from_data, "the log tells the distance from the teacher"
    capsys.readouterr()
    assert main(arguments(data, out, small, 60, *more[1:])) == EXIT_USER_ERROR, "the same run without its teacher"
    assert "teacher" in capsys.readouterr().err
    assert main(arguments(data, tmp_path / "x", small, 4, more[0], "scheduler.prediction_type=epsilon")) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the teacher at" in error and "prediction_type" in error and "give the same scheduler" in error


@pytest.mark.parametrize("network", [UNET, DIT], ids=["unet", "dit"])  # a DiT drops labels at random
def test_resuming_equals_going_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: list[str]) -> None:
    data = write_dataset(tmp_path / "data")
    assert main(arguments(data, tmp_path / "whole", network, 12)) == 0
    step, calls = TrainingLoop._step, 0

    def stop_after(loop: TrainingLoop) -> float:
        nonlocal calls
        calls += 1
        if calls == 8:  # three steps after the last save
            raise KeyboardInterrupt
        return step(loop)

    monkeypatch.setattr(TrainingLoop, "_step", stop_after)
    assert main(arguments(data, tmp_path / "parts", network, 12)) == 130
    assert main(arguments(data, tmp_path / "parts", network, 12)) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert calls == 8 + 8 and whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(torch.as_tensor(parts[name]), torch.as_tensor(value)), name


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.images.train", *arguments(data, out, UNET, 60, "training.threads=1")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 600
    while not (out / "training.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(out / "training.pt", weights_only=True)["step"]
    assert reached < 60
    UNet2DModel.from_pretrained(out / "unet")
    assert main(command[3:]) == 0
    steps = [json.loads(line)["step"] for line in (out / "training.jsonl").read_text().splitlines()]
    assert steps[-1] == 60 and steps == sorted(steps)


def test_the_levels_of_a_batch_are_spread_over_the_chain(tmp_path: Path) -> None:
    images = read_images(write_dataset(tmp_path / "data"), "train")
    seen: list[Tensor] = []

    class Watching(torch.nn.Module):
        def forward(self, noisy: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
            seen.append(timestep)
            return (torch.zeros_like(noisy),)

    lesson = image_lesson(DDPMScheduler(1000), images, images, "cpu", lambda *_: None, {})
    generator = torch.Generator().manual_seed(0)
    losses = torch.stack([lesson.loss(Watching(), torch.arange(40), generator) for _ in range(50)])
    for timestep in seen:
        assert timestep.sort().values.diff().sub(25).abs().max() <= 1 and 0 <= timestep.min() <= timestep.max() < 1000
    assert len({int(timestep.min()) for timestep in seen}) > 10
    assert losses.mean().item() == pytest.approx(1.0, abs=0.02)  # the mean square of the noise


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["network.sample_size=16"], "the images in .* are 8 × 8; the network is made for 16 × 16"),
        (["data=nowhere"], "no train-images-idx3-ubyte.gz in nowhere"),
        (["scheduler.prediction_type=flow"], "prediction_type"),
        (["training.learning_rate=1e-5"], "learning_rate"),
        (["network.block_out_channels=[8,8]"], "network"),
        (["+scheduler.beta_end=0.03"], "scheduler"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    says: str,
) -> None:
    given = arguments(trained.parent / "data", trained, UNET, 4)
    if "prediction_type" in more[0]:
        given[1] = f"out={tmp_path_factory.mktemp('other')}"
    capsys.readouterr()
    assert main([*given, *more]) == EXIT_USER_ERROR
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(says, error), error


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(arguments(write_dataset(folder / "data"), folder / "out", UNET, 4)) == 0
    return folder / "out"


def test_the_shipped_settings_make_networks_for_fashion_mnist() -> None:
    from hydra.utils import instantiate

    from benchmarks.images.command_line import compose_script
    from specpolicy.config import to_container

    for name, most in (("unet", 1e6), ("unet_draft", 1.5e5), ("dit", 1.25e6)):
        cfg = compose_script("train", ["data=x", f"network={name}"])
        network = instantiate(cfg.network, _convert_="all")
        assert sum(each.numel() for each in network.parameters()) < most
        TrainingSettings(**to_container(cfg.training))
        labels = {"class_labels": torch.tensor([0, 9])} if name == "dit" else {}
        with torch.no_grad():
            out = network(torch.zeros(2, 1, 28, 28), torch.tensor([0, 999]), **labels, return_dict=False)[0]
        assert out.shape == (2, 1, 28, 28)
