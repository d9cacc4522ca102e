"""``benchmarks/images/bench_asdsv.py``, on tiny networks: what it counts, that it goes on, what its tables say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
sys.path.insert(0, str(Path(__file__).parent / "training"))
import tiny_pipelines as tiny
from idx_files import write_dataset
from image_benchmarks import benchmark_module, run

pytestmark = pytest.mark.slow  # trains

STEPS = 20


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark_module(monkeypatch, "bench_asdsv")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network, and the same one to draft for it."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("target", "draft"):
        tiny.ddpm(size=8).save_pretrained(folder / name)
    return folder / "target", folder / "draft"


def test_passes_times_and_tables(
    benchmark: ModuleType,
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "BATCH", 2)
    common = (*models, "--steps", STEPS, "--deltas", 0.0, 1e-3, "--out", tmp_path)
    run(benchmark, monkeypatch, *common, "--chains", 2, "--batches", 2)
    drawn: list[str] = []
    draw = benchmark.Subject.sample

    def watched(subject: Any, sampler: Any, network: Any, seeds: list[int]) -> Any:
        drawn.extend(map(str, seeds))
        return draw(subject, sampler, network, seeds)

    monkeypatch.setattr(benchmark.Subject, "sample", watched)
    capsys.readouterr()
    run(benchmark, monkeypatch, *common, "--chains", 3)
    assert drawn.count(str(benchmark.SEED + 2)) == 8 and str(benchmark.SEED) not in drawn, "two of three were there"
    found = json.loads((tmp_path / "target_20.json").read_text())
    chains = {name: rows[0] for name, rows in found["chains"].items()}
    assert all(len(rows) == 3 for rows in found["chains"].values())
    counts = {name: (row["passes"], row["draft_passes"]) for name, row in chains.items()}
    # 2 steps alone; then checked drafts of 4 and of 9 steps by a network that agrees, or one that never does
    assert counts["sequential"] == (STEPS, 0) and counts["DDIM, 10 steps"] == (10, 0)
    assert counts["asdsv_fast"] == (2, 18) and counts["asdsv_slow, delta 0.001"] == (6, 18)
    assert counts["asdsv_slow, delta 0"][0] == STEPS and chains["asdsv_slow, delta 0"]["kept"] == 0
    assert chains["asdsv_slow, delta 0.001"]["kept"] == chains["asdsv_slow, delta 0.001"]["drafted"] == 18
    served = {name: (rows[0]["passes"], rows[0]["draft_passes"]) for name, rows in found["pipelines"].items()}
    assert served == {
        "stock pipeline": (STEPS, 0), "two pipelines, delta 0.001": (6, 18), "two pipelines, unchecked": (2, 18),
    }  # fmt: skip
    text = capsys.readouterr().out
    assert text.rstrip() == (tmp_path / "target_20.md").read_text().rstrip()
    exact = {line.split("|")[1].strip() for line in text.splitlines() if "| exact |" in line}
    assert exact == {"sequential", "free block, adaptive", "stock pipeline"}
    assert "| sequential | exact | 20.0 [20.0, 20.0] | 20 | 0 | – | – | – |" in text


def test_distances_of_sets_of_images(
    benchmark: ModuleType, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "data", held_out=400)
    run(
        benchmark, monkeypatch, *models, "--steps", 6, "--deltas", 1e-3, "--images", 40, "--data", data,
        "--out", tmp_path / "out", "--work", tmp_path / "work",
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "target_6.json").read_text())["distances"]
    assert list(found["sets"])[:3] == ["held out", "sequential", "sequential again"] and found["images"] == 40
    assert found["sets"]["held out"]["p"] < 0.05, "an untrained network does not draw squares"
    for name in ("sequential again", "asdsv_fast", "two pipelines, unchecked"):  # the draft is the target
        assert found["sets"][name]["more"]["low"] < 0 < found["sets"][name]["more"]["high"], name
    assert "two pipelines, delta 0.001" in (tmp_path / "out" / "target_6.md").read_text()


def test_any_two_denoisers_can_be_measured(benchmark: ModuleType) -> None:
    asked: list[Tensor] = []

    def network(x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        asked.append(cond)
        return 0.1 * x + cond[:, None]

    conds = torch.tensor([[0.0], [1.0], [2.0]])
    subject = benchmark.Subject(network, network, DDPMScheduler(100), 10, (4, 1), conds)
    ways = benchmark.ways_of(subject, [1e-3])
    kept: dict[str, Any] = {}
    saved: list[int] = []
    benchmark.measure(ways, 2, 3, kept, lambda: saved.append(len(kept["sequential"])))
    assert saved == [1, 2] and set(kept) == set(ways)
    assert all(row["passes"] == 1 for row in kept["asdsv_fast"]), "the target makes the first tenth alone"
    assert all(each.shape[1:] == (1,) for each in asked)
    assert {float(each) for cond in asked for each in cond.flatten()} == {0.0, 1.0, 2.0}


def test_what_is_missing_is_said(
    benchmark: ModuleType,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for given, says in (
        (["--images", 4], "--data, the folder of their idx files"),
        (["--deltas"], "at least one threshold"),
    ):
        with pytest.raises(SystemExit):
            run(benchmark, monkeypatch, *models, *given)
        assert says in capsys.readouterr().err
