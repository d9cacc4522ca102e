"""The examples on images run, on the shipped model, and say what they show."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [example])
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_three_samplers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written = run("sample_images.py", monkeypatch, capsys)
    passes = {line[:22].strip(): int(line[22:].split()[0]) for line in written if line.endswith(" ms")}
    assert passes["DDPM-100 (exact)"] == 100 and passes["DDIM-10 (approximate)"] == 10
    assert passes["free + block (exact)"] < 50
    drawn = [line for line in written if line.startswith("    ")]
    assert len(drawn) == 3 * 14 and all(len(line) == 4 + 28 for line in drawn)
    for image in (drawn[:14], drawn[14:28], drawn[28:]):
        ink = "".join(image).replace(" ", "")
        assert 60 < len(ink) < 380, "a piece of clothing, neither noise nor nothing"


def test_a_pipeline_accelerated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stock, fast, restored = run("accelerate_a_pipeline.py", monkeypatch, capsys)
    assert stock == "stock: 100 evaluations" and restored.endswith("bit for bit: True")
    assert int(fast.split()[2]) < 60
