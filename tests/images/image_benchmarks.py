"""Benchmarks on images, run from tests: without the ImageNet network, on images of 8 × 8 pixels."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from benchmarks.images import distance


class Pixels:
    """Stands in for the ImageNet network."""

    def __init__(self, device: str) -> None:
        assert device == "cpu"

    def __call__(self, images: Tensor) -> Any:
        assert images.shape[1:] == (1, 8, 8) and images.abs().max() <= 1
        return images.flatten(1).numpy()


def benchmark_module(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """The benchmark of that name in ``benchmarks/images``."""
    monkeypatch.setattr(distance, "ImageNetFeatures", Pixels)
    return importlib.import_module(f"benchmarks.images.{name}")


def run(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Call it as from the command line, and expect success."""
    monkeypatch.setattr(sys, "argv", [f"{benchmark.__name__}.py", *map(str, arguments)])
    assert benchmark.main() == 0
