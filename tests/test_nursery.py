"""Workers are forked from a process that is warm, where that is safe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("nursery_program.py")


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_are_born_warm_except_of_a_process_with_threads() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=True)
    first, *others = done.stdout.splitlines()
    assert first == "the program runs" and len(others) == 1, "workers do not run the program's file again"
    (one, two), threaded = json.loads(others[0])
    assert one["me"] != two["me"]
    assert one["warm"] == two["warm"] == str(one["parent"]) == str(two["parent"])
    assert [worker["warm"] for worker in threaded] == [None, None]
