"""The soak of ``benchmarks/soak_server.py``, at a size for every day, and its measured result."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow  # thousands of requests

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak_server", ROOT / "benchmarks" / "soak_server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak_server"] = module
    spec.loader.exec_module(module)
    return module


def test_thousands_of_requests_from_eight_clients_leave_nothing_behind(tmp_path: Path) -> None:
    found = load().soak(3000, 8, tmp_path / "soak.json", most_s=300.0, every_s=0.1)
    assert found["completed"] and found["n"] == 3000 and found["errors"] == {}
    # eight impatient clients share evaluations; whether any request ever rides alone is the machine's affair
    sizes = {int(size): n for size, n in found["batch_sizes"].items()}
    assert sum(sizes.values()) == 3000 and max(sizes) > 1
    # 2 MiB over the counted 2100 requests are 1000 bytes each: a reply or an observation that is kept takes more
    assert found["growth_mib"]["server"] < 2
    assert json.loads((tmp_path / "soak.json").read_text()) == found


def test_growth_is_told_from_warming_up() -> None:
    growth = load().growth_mib
    warming = [{"requests": n, "x": min(n, 10)} for n in range(100)]
    leaking = [{"requests": n, "x": n} for n in range(100)]
    assert growth(warming, "x") == 0 and growth(leaking, "x") > 70 and growth([], "x") is None
