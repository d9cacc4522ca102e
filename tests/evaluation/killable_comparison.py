"""A comparison in Ray workers as a program of its own, to be killed: ``killable_comparison.py ADDRESS FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from evaluation_fakes import reach

from specpolicy.evaluation.compare import run_missing
from specpolicy.evaluation.launchers.ray import RayLauncher

if __name__ == "__main__":
    address, folder = sys.argv[1], Path(sys.argv[2])
    slow = reach(folder / "weights", env={"step_s": 0.03})
    run_missing({"reach": slow}, {"reach": folder / "out"}, RayLauncher(address, cpus_per_worker=2))
