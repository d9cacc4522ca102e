"""``benchmarks/bench_warm_start.py``: one table of all settings that have been played."""

from __future__ import annotations

import sys
from pathlib import Path

import bench_warm_start
import pytest

ROOT = Path(__file__).parents[2]


def test_the_table_is_of_the_settings_that_were_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = ROOT / "benchmarks" / "results" / "warm_start"
    for name in ("2-from-39", "2-from-59"):
        (tmp_path / name).symlink_to(measured / name)
    (tmp_path / "4-from-39" / "pusht").mkdir(parents=True)  # begun, and without a table yet
    monkeypatch.setattr(sys, "argv", ["bench_warm_start.py", "--steps", "--out", str(tmp_path)])
    bench_warm_start.main()
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[2:4] for line in lines[2:4]] == [[" 2 ", " 39 "], [" 2 ", " 59 "]] and not lines[4]
    every = bench_warm_start.table(measured)
    assert (measured / "table.md").read_text(encoding="utf-8") == every and lines[2] in every
