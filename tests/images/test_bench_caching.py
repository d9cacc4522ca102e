"""``benchmarks/images/bench_caching.py``, on a tiny transformer for images: its rows, its sets, its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel

from benchmarks.images.pixels import PixelDiTPipeline

sys.path.insert(0, str(Path(__file__).parent / "training"))
from idx_files import write_dataset
from image_benchmarks import benchmark_module

pytestmark = pytest.mark.slow  # trains


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark_module(monkeypatch, "bench_caching")


def test_a_trained_transformer_for_images(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=1, norm_num_groups=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=4,
    )  # fmt: skip
    scheduler = DDPMScheduler(1000, prediction_type="v_prediction")
    PixelDiTPipeline(network, scheduler).save_pretrained(tmp_path / "tiny")
    data = write_dataset(tmp_path / "data", held_out=400)
    monkeypatch.setattr(benchmark, "STEPS", 6)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "out")
    monkeypatch.setitem(benchmark.WAYS, "whole", 6)
    monkeypatch.setattr(benchmark, "random_dit", lambda count: benchmark.trained_dit(tmp_path / "tiny", count))
    arguments = ["x", "nowhere", "--images", "2", "--dit", tmp_path / "tiny", "--data", data, "--work", tmp_path / "w"]
    monkeypatch.setattr(benchmark, "POLICY", Path("nowhere"))
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--sets", "40"])
    assert benchmark.main() == 0
    found = json.loads((tmp_path / "out" / "tiny.json").read_text())
    rows = {row["way"]: row for row in found["rows"]}
    assert found["tokens"] == 16 and found["samples"] == 2 and rows["whole"]["passes"] == 6
    assert rows["ratio 0.5"]["passes"] == 8 and rows["ratio 0.9"]["operations"] < rows["ratio 0.5"]["operations"]
    assert rows["ratio 0.0"]["distance"]["value"] < 1e-4 < rows["ratio 0.5"]["distance"]["value"]
    images = found["images"]
    assert list(images["sets"]) == ["held out", *benchmark.DRAWN] and images["images"] == 40
    assert images["off"]["whole"]["value"] == 0 < images["off"]["ratio 0.5"]["value"] < 1
    assert images["sets"]["ratio 0.5"]["p"] is None, "not of independent draws"
    assert images["sets"]["held out"]["frechet"]["high"] < images["sets"]["whole"]["frechet"]["low"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| whole | of the chain |" in text and "| ratio 0.5 | approx. |" in text and "40 images of each set" in text
    monkeypatch.setattr(sys, "argv", ["x", "--sets", "4"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--data, the folder of their idx files" in capsys.readouterr().err
