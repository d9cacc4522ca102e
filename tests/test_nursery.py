"""Workers are forked from a process that is warm, where that is safe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("nursery_program.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


def told(warm_up: str) -> tuple[dict[str, Any], dict[str, Any]]:
    done = subprocess.run([sys.executable, str(PROGRAM), warm_up], capture_output=True, text=True, check=True)
    first, *others = done.stdout.splitlines()
    assert first == "the program runs" and len(others) == 1, "workers do not run the program's file again"
    one, two = json.loads(others[0])
    assert one["me"] != two["me"]
    return one, two


@pytest.mark.parametrize("warm_up", ["warm_up", "fail"])
def test_workers_are_born_warm(warm_up: str) -> None:
    one, two = told(warm_up)
    assert one["warm"] == two["warm"] == str(one["parent"]) == str(two["parent"])


def test_a_process_with_threads_is_not_forked() -> None:
    one, two = told("start_a_thread")
    assert one["warm"] is two["warm"] is None
