"""Lines of a fine-tuning run become groups with intervals, a table and a figure."""

from __future__ import annotations

import json
from pathlib import Path

import learning_curve
import pytest


def test_a_run_becomes_a_table_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"iteration": 0, "evaluation_successes": 5, "evaluation_episodes": 10}]
    for iteration in range(1, 8):
        lines.append({"iteration": iteration, "training_successes": iteration, "training_episodes": 8})
    lines[-1] |= {"evaluation_successes": 9, "evaluation_episodes": 10}
    (tmp_path / "curve.json").write_text(
        json.dumps({"settings": {"task": "square", "checkpoint": "/home/someone"}, "curve": lines})
    )
    monkeypatch.setattr(learning_curve, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["learning_curve.py", str(tmp_path), "--start", "people"])
    learning_curve.main()
    written = (tmp_path / "results" / "finetune" / "curve-square.json").read_text()
    assert "/home/someone" not in written
    parts = json.loads(written)["groups"]
    assert [(each["kind"], each["first"], each["last"], each["successes"], each["episodes"]) for each in parts] == [
        ("evaluation", 0, 0, 5, 10),
        ("training", 1, 5, 15, 40),
        ("training", 6, 7, 13, 16),
        ("evaluation", 7, 7, 9, 10),
    ]
    assert "| 1–5 | training | 15/40 | 38 [23, 54] |" in capsys.readouterr().out
    assert (tmp_path / "results" / "finetune" / "curve-square.png").stat().st_size > 5_000
