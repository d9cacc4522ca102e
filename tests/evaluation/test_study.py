"""Studies go on where they stopped."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from evaluation_fakes import FakePolicy, FakeSampler, ReachEnv

from specpolicy.evaluation.results import ResultStore, read_results, read_shards
from specpolicy.evaluation.study import run_study
from specpolicy.rollout.env_worker import EnvPool
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult

SAMPLERS = {"ddpm": FakeSampler(passes=100), "free": FakeSampler(passes=12)}
PROGRAM = Path(__file__).with_name("killable_study.py")


def study(folder: Path, policy: Any = None, make_env: Any = ReachEnv, **more: Any) -> list[EpisodeResult]:
    settings: dict[str, Any] = {"task": "reach", "seeds": list(range(6)), "block_size": 3} | more
    with ResultStore(folder, {"task": "reach"}) as store, EnvPool(make_env, 2) as pool:
        return run_study(policy or FakePolicy(), SAMPLERS, pool, store, **settings)


def test_every_sampler_gets_every_seed_block_by_block(tmp_path: Path) -> None:
    records = study(tmp_path, repeats=2)
    assert {record.key for record in records} == {
        EpisodeKey(name, seed, repeat) for name in SAMPLERS for seed in range(6) for repeat in range(2)
    }
    assert {(record.sampler, record.mean_passes) for record in records} == {("ddpm", 100), ("free", 12)}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = study(tmp_path, seeds=[0, 1, 2, 3])
    policy = FakePolicy()
    both = study(tmp_path, policy)
    assert [record for record in both if record.seed < 4] == first
    assert len(policy.batches) == sum(record.chunks for record in both if record.seed >= 4)
    policy = FakePolicy()
    assert study(tmp_path, policy) == both
    assert policy.batches == []


def test_ctrl_c_keeps_what_has_finished(tmp_path: Path) -> None:
    class Interrupted(FakePolicy):
        def predict_action(self, *arguments: Any) -> Any:
            if len(self.batches) == 12:
                raise KeyboardInterrupt
            return super().predict_action(*arguments)

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, Interrupted())
    saved, _ = read_results(tmp_path)
    assert 0 < len(saved) < 12
    assert set(saved) <= set(study(tmp_path))


def test_crashed_episodes_are_run_again_on_request_only(tmp_path: Path) -> None:
    broken = study(tmp_path, make_env=partial(ReachEnv, raising=(4,)))
    assert sum(record.crashed for record in broken) == 2
    assert study(tmp_path) == broken
    mended = study(tmp_path, retry_crashed=True)
    assert sum(record.crashed for record in mended) == 0
    assert len(mended) == 12
    assert read_results(tmp_path)[0] == mended


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes through Linux's /proc")
def test_killed_and_resumed(tmp_path: Path) -> None:
    """SIGKILL in the middle, workers and all; the same command goes on without loss or doubling."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(PROGRAM), str(tmp_path), "2", "0.1"], env=environment)
    for _ in _until(lambda: len(read_shards(tmp_path)) >= 3):
        assert process.poll() is None, "the study ended before it could be killed"
    workers = _descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved, _ = read_results(tmp_path)
    assert 3 <= len(saved) < 16
    assert len(workers) >= 2
    for _ in _until(lambda: not any(_alive(pid) for pid in workers)):
        pass  # orphaned workers notice and end
    subprocess.run([sys.executable, str(PROGRAM), str(tmp_path), "1", "0"], env=environment, check=True)
    records, manifest = read_results(tmp_path)
    assert set(saved) <= set(records)
    assert [record.key for record in records] == [EpisodeKey(n, s, 0) for n in ("ddpm", "free") for s in range(8)]
    assert set(manifest.samplers) == {"ddpm", "free"}
    undisturbed = study(tmp_path / "undisturbed", seeds=list(range(8)))
    assert _outcome(records) == _outcome(undisturbed)


def _outcome(records: list[EpisodeResult]) -> list[EpisodeResult]:
    return [dataclasses.replace(record, duration_s=0.0) for record in records]


def _until(condition: Any, timeout_s: float = 300.0) -> Iterator[None]:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        yield
        time.sleep(0.02)


def _descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(below for child in children for below in _descendants(child))]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
