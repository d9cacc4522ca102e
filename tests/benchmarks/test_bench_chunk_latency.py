"""``benchmarks/bench_chunk_latency.py``: what it measures of a shipped policy, what it writes, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_chunk_latency
import pytest
import side_by_side

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
