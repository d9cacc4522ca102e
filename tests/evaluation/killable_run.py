"""A small comparison as a program of its own, to be killed: ``killable_run.py FOLDER NUM_ENVS STEP_S``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from evaluation_fakes import reach

from specpolicy.evaluation.compare import run_missing

if __name__ == "__main__":
    folder, num_envs, step_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    comparison = reach(
        folder.with_name("weights"), seeds=range(8), block_size=4, num_envs=num_envs, repeats={"ddpm": 1, "free": 1},
        env={"step_s": step_s, "limit": 30},
    )  # fmt: skip
    run_missing({"reach": comparison}, {"reach": folder})
