"""A small study as a program of its own, to be killed: ``killable_study.py FOLDER NUM_ENVS STEP_S``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from evaluation_fakes import FakePolicy, FakeSampler

from specpolicy.evaluation.results import ResultStore
from specpolicy.evaluation.study import run_study
from specpolicy.rollout.env_worker import EnvPool, MakeEnv

if __name__ == "__main__":
    folder, num_envs, step_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    samplers = {"ddpm": FakeSampler(passes=100), "free": FakeSampler(passes=12)}
    make_env = MakeEnv("Reach-v0", {"step_s": step_s, "disable_env_checker": True}, imports=("evaluation_fakes",))
    store = ResultStore(folder, {"task": "reach"}, {name: {"exact": True} for name in samplers})
    with store, EnvPool(make_env, 2, num_envs) as pool:
        run_study(FakePolicy(), samplers, pool, store, task="reach", seeds=range(8), block_size=4)
