"""``benchmarks/bench_short_chains.py``: what it measures, and what its committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import bench_short_chains
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_measures_every_way_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_short_chains, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_short_chains, "STEPS", (10, 5))
    monkeypatch.setattr("sys.argv", ["x", "pusht", "--observations", "2", "--chunks", "10"])
    bench_short_chains.main()
    told, kept = capsys.readouterr().out, (tmp_path / "pusht.json").read_bytes()
    assert told.count("\n| 10 |") == told.count("\n| 5 |") == 3 and (tmp_path / "distance_against_steps.png").exists()
    found = json.loads(kept)
    assert set(found["ways"]) == {
        "ddpm100",
        *(f"{way}{steps}" for way in ("ddpm", "analytic", "ddim") for steps in (10, 5)),
    }
    assert all(2 < low <= mean <= high <= 10 for mean, low, high in found["passes"].values())
    bench_short_chains.main()
    assert (tmp_path / "pusht.json").read_bytes() == kept, "not measured again"


@pytest.mark.parametrize("task", ["pusht", "square", "tool_hang", "transport"])
def test_ten_analytic_steps_are_closest(task: str) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "short_chains" / f"{task}.json").read_text())
    distance = {name: np.mean(row["distance"]) for name, row in found["ways"].items()}
    assert distance["analytic10"] < 0.5 * min(distance["ddim10"], distance["ddpm10"])
    assert (
        distance["analytic10"] < 0.01 and found["ways"]["analytic10"]["exact"] and not found["ways"]["ddim10"]["exact"]
    )
