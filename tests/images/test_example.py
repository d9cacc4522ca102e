"""The example on images runs and says what it shows."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sample_images.py"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "sample_images.py"), run_name="__main__")
    stock, fast, restored = capsys.readouterr().out.strip().splitlines()
    assert stock == "stock: 100 passes" and restored.endswith("bit for bit: True")
    assert int(fast.split()[2]) < 60
