"""``benchmarks.images.sample``: sheet, times and figure of a saved pipeline; resuming; errors in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import benchmarks.images.sampling as job_module
from benchmarks.images import sampling as pipelines
from benchmarks.images.command_line import EXIT_USER_ERROR
from benchmarks.images.sample import main

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
import tiny_pipelines as tiny

SAMPLERS = "sampler=[ddpm,free_adaptive,ddim5]"
STEPS = "sampler.num_inference_steps=20"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny.ddpm(channels=3).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    return [f"model={model}", f"out={out}", SAMPLERS, STEPS, "images=3", "batch=2", *more]


def test_sheet_table_and_figure(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(arguments(model, out)) == 0
    written = capsys.readouterr().out
    assert (out / "table.md").read_text() in written
    rows = {line.split("|")[1].strip(): line for line in written.splitlines() if line.startswith("| ")}
    assert "| exact | 20 | 3 |" in rows["ddpm"] and "| 20.0 | 20.0 | – |" in rows["ddpm"]
    assert "| exact | 20 | 3 |" in rows["free_adaptive"] and "approx." in rows["ddim5"]
    assert float(rows["free_adaptive"].split("|")[7]) < 16
    with Image.open(out / "grid.png") as sheet, Image.open(out / "acceptance.png") as figure:
        assert sheet.size == (3 * (64 + 4) + 4, 3 * (64 + 20)) and figure.width > 500
        assert len(set(sheet.convert("L").tobytes())) > 3
    batches = json.loads((out / "free_adaptive" / "batches.json").read_text())
    assert [each["images"] for each in batches] == [[0, 1], [2]]
    assert all(sum(entry[2] + 1 for entry in image) == 20 for each in batches for image in each["rounds"])


def test_it_goes_on_where_it_stopped(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out, asked = tmp_path / "whole", tmp_path / "out", []
    assert main(arguments(model, whole)) == 0

    def interrupted(*args: Any) -> Any:
        asked.append(args)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return original(*args)

    original = pipelines.ask
    monkeypatch.setattr(job_module, "ask", interrupted)
    assert main(arguments(model, out)) != 0
    assert main(arguments(model, out)) == 0
    assert len(asked) == 4 + 3, "three samplers and two batches, of which one was asked for twice"
    assert main(arguments(model, out)) == 0 and len(asked) == 7
    for sampler in ("ddpm", "free_adaptive", "ddim5"):
        for number in range(3):
            name = f"{sampler}/{number:05d}.png"
            assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["seed=1"], "other settings (seed)"),
        (["sampler.window.min_acceptance=0.2", "sampler=free_adaptive"], "other settings (samplers)"),
    ],
)
def test_other_settings_want_another_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], says: str
) -> None:
    common = [f"model={model}", f"out={tmp_path / 'out'}", "images=1", STEPS]
    assert main([*common, "sampler=free_adaptive"]) == 0
    assert main([*common, "sampler=free_adaptive", *[each for each in changes if each != "sampler=free_adaptive"]])
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "more", "says"),
    [
        (None, [], "no diffusers pipeline at"),
        (tiny.dit, [], "wants class labels: labels=[0,1]"),
        (tiny.ddpm, ["images=0"], "must be at least 1"),
        (tiny.ddpm, ["sampler.window.min_acceptance=2.0"], "between 0 and 1"),
        (lambda: tiny.ddpm(out_channels=2), [], "learned variance"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, more: list[str], says: str
) -> None:
    if make is not None:
        make().save_pretrained(tmp_path / "model")
    common = [f"model={tmp_path / 'model'}", f"out={tmp_path / 'out'}", "sampler=free_adaptive"]
    assert main([*common, *more]) == EXIT_USER_ERROR
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and says in error


def test_labels_and_guidance(tmp_path: Path) -> None:
    tiny.dit().save_pretrained(tmp_path / "model")
    assert not main(
        [
            f"model={tmp_path / 'model'}",
            f"out={tmp_path / 'out'}",
            "sampler=free_adaptive",
            "images=2",
            "labels=[5,7]",
            "guidance_scale=2.0",
            STEPS,
        ]
    )
    (first, _) = json.loads((tmp_path / "out" / "free_adaptive" / "batches.json").read_text())
    assert first["steps"] == 20 and first["passes"][0] < 20
