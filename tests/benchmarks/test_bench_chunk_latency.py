"""``benchmarks/bench_chunk_latency.py``: what it measures of a shipped policy, what it writes, what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import bench_chunk_latency
import pytest
import side_by_side

from specpolicy.policies.diffusion_policy import DiffusionPolicy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pusht").symlink_to(ROOT / "benchmarks" / "results" / "pusht")
    monkeypatch.setattr(side_by_side, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_chunk_latency, "peers", lambda policy, compiled: ({}, {"LeRobot": "left out: a test"}))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_chunk_latency.py", *arguments])
    bench_chunk_latency.main()


def test_the_chosen_samplers_are_measured(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["ddim5", "linear block, K = 20, window 6"]
    run(monkeypatch, "pusht", "--calls", "2", "--no-compile", "--batches", "--only", *chosen)
    content = json.loads((results / "latency" / "pusht-cpu.json").read_text())
    rows = content["batches"]["1"]
    assert list(content["batches"]) == ["1"] and content["widened"] == 1
    assert list(rows) == ["diffusers loop, DDPM-100", *chosen]
    assert [row["exact"] for row in rows.values()] == [True, False, True]
    assert rows["ddim5"]["passes"]["value"] == 5 and rows["ddim5"]["faster_than_the_diffusers_loop"]["value"] > 2
    table = (results / "latency" / "pusht-cpu.md").read_text()
    assert "LeRobot left out: a test" in table and "| ddim5 | approx. | 5.0 |" in table


def test_what_cannot_be_measured_is_refused(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (["--only", "ddim3"], "no ['ddim3'] here; known: ['ParaDiGMS"),
        (["--widen", "4"], "only U-Nets can be"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "pusht", *arguments)
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert not (results / "latency").exists()


def test_the_gpu_run_asks_for_what_is_there() -> None:
    policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / "tool_hang")
    known, asked = set(bench_chunk_latency.eager(policy)), set[str]()
    script = (ROOT / "benchmarks" / "gpu.sh").read_text().replace("\\\n", " ")
    for line in (line for line in script.splitlines() if line.startswith("part") and "bench_chunk_latency" in line):
        words = shlex.split(line)
        if "--only" in words:
            only = words[words.index("--only") + 1 :]
            assert set(bench_chunk_latency.CAPTURED) <= set(only), line  # the rivals, in every run
            asked |= set(only)
    assert asked and asked <= known
    compiled = {*bench_chunk_latency.COMPILED, *bench_chunk_latency.ALSO_ON_CUDA}
    assert asked <= compiled, "what is timed on a GPU is captured there"
    assert set(bench_chunk_latency.BASES) == {
        f"{name}, {how}" for name in ("ddpm", "ddim10", "ddim5") for how in ("compiled", "captured")
    }
