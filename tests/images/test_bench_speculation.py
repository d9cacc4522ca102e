"""The speculation benchmark on a tiny network: what it writes, that it resumes, what its tables say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
sys.path.insert(0, str(Path(__file__).parent / "training"))
import tiny_pipelines as tiny
from idx_files import write_dataset
from image_benchmarks import benchmark_module, run

pytestmark = pytest.mark.slow  # trains


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark_module(monkeypatch, "bench_speculation")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.ddpm(size=8).save_pretrained(folder)
    return folder


def test_chains_tables_and_figures(
    benchmark: ModuleType,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = (model, "--steps", 12, "--windows", 3, 5, "--out", tmp_path)
    run(benchmark, monkeypatch, *common, "--chains", 2)
    asked: list[list[int]] = []
    sample = benchmark.Model.sample

    def watched(model: Any, sampler: Any, seeds: list[int]) -> Any:
        asked.append(seeds)
        return sample(model, sampler, seeds)

    monkeypatch.setattr(benchmark.Model, "sample", watched)
    capsys.readouterr()
    run(benchmark, monkeypatch, *common, "--chains", 3)
    assert asked.count([benchmark.SEED + 2]) == 17 and [benchmark.SEED] not in asked, "two of three were there"
    found = json.loads((tmp_path / "tiny_12.json").read_text())
    assert len(found["chains"]) == 5 + 2 * 6 and all(len(rows) == 3 for rows in found["chains"].values())
    assert [row["passes"] for row in found["chains"]["sequential"]] == [12] * 3
    for name, rows in found["chains"].items():
        for row in rows[: 0 if name == "sequential" else None]:
            rounds, _, kept = np.sum(row["tenths"], 0)
            assert rounds + kept == 12 and row["passes"] <= 25
    text = capsys.readouterr().out
    assert text.rstrip() == (tmp_path / "tiny_12.md").read_text().rstrip()
    assert "| sequential | 12.0 [12.0, 12.0] | 1.00 [1.00, 1.00] | 12 | – | – | – | – |" in text
    assert text.count("| 3 | frozen |") == 1 and text.count("| 5 | block |") == 1 and "12 steps, 3 chains" in text
    for name in ("comparison", "acceptance"):
        with Image.open(tmp_path / f"tiny_12_{name}.png") as figure:
            assert figure.size[0] > 800 and len(set(figure.convert("L").tobytes())) > 20


def test_distances_of_sets_of_images(
    benchmark: ModuleType, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "data", held_out=400)
    common = (model, "--steps", 6, "--images", 40, "--data", data, "--out", tmp_path / "out", "--work", tmp_path / "w")
    run(benchmark, monkeypatch, *common)
    sets = json.loads((tmp_path / "out" / "tiny_6.json").read_text())["distances"]["sets"]
    assert list(sets) == ["held out", "sequential", "sequential again", "adaptive 0.1", "free block 4"]
    assert sets["held out"]["p"] < 0.05 < sets["adaptive 0.1"]["p"], "an untrained network does not draw squares"
    assert sets["held out"]["frechet"]["high"] < sets["sequential"]["frechet"]["low"]
    for name in ("sequential again", "adaptive 0.1", "free block 4"):
        assert sets[name]["more"]["low"] < 0 < sets[name]["more"]["high"]
    monkeypatch.setattr(benchmark.Model, "sample", None)
    run(benchmark, monkeypatch, *common)  # all images are kept
    with Image.open(tmp_path / "out" / "tiny_6_sheet.png") as sheet:
        assert sheet.size == (12 * 60 + 4, 5 * (56 + 20))


def test_images_want_something_to_be_compared_with(
    benchmark: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(benchmark, monkeypatch, model, "--images", 4)
    assert "--data, the folder of their idx files" in capsys.readouterr().err
