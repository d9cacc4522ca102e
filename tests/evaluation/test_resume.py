"""Runs go on where they stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from evaluation_fakes import FakeContestants, FakePolicy, outcomes, reach

from specpolicy.evaluation.compare import run_missing
from specpolicy.evaluation.comparison import PolicyAndSamplers
from specpolicy.evaluation.results import read_results, read_shards
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult

PROGRAM = Path(__file__).with_name("killable_run.py")


@dataclass(frozen=True)
class Same(FakeContestants):
    """Opens the same policy every time, so that what it was asked can be looked at."""

    policy: FakePolicy = field(default_factory=FakePolicy)

    def __call__(self) -> PolicyAndSamplers:
        return PolicyAndSamplers(self.policy, self.samplers)


def run(folder: Path, policy: FakePolicy | None = None, **more: Any) -> list[EpisodeResult]:
    """Two samplers on some seeds; the results in the folder, and the policy that was asked."""
    settings: dict[str, Any] = {"repeats": {"ddpm": 1, "free": 1}, "env": {"limit": 30}} | more
    comparison = reach(folder.with_name("weights"), contestants=Same(policy or FakePolicy()), **settings)
    run_missing({"reach": comparison}, {"reach": folder})
    return read_results(folder)[0]


def test_every_sampler_gets_every_seed(tmp_path: Path) -> None:
    results = run(tmp_path / "out", repeats={"ddpm": 2, "free": 2})
    assert {result.key for result in results} == {
        EpisodeKey(name, seed, repeat) for name in ("ddpm", "free") for seed in range(6) for repeat in range(2)
    }
    assert {(result.sampler, result.mean_passes) for result in results} == {("ddpm", 100), ("free", 12)}


def test_finished_episodes_are_not_repeated(tmp_path: Path) -> None:
    first = run(tmp_path / "out", seeds=[0, 1, 2, 3])
    policy = FakePolicy()
    both = run(tmp_path / "out", policy)
    assert [result for result in both if result.seed < 4] == first
    assert len(policy.batches) == sum(result.chunks for result in both if result.seed >= 4)
    policy = FakePolicy()
    assert run(tmp_path / "out", policy) == both
    assert policy.batches == []


def test_ctrl_c_keeps_what_has_finished(tmp_path: Path) -> None:
    class Interrupted(FakePolicy):
        def predict_action(self, *arguments: Any) -> Any:
            if len(self.batches) == 12:
                raise KeyboardInterrupt
            return super().predict_action(*arguments)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", Interrupted())
    saved, _ = read_results(tmp_path / "out")
    assert 0 < len(saved) < 12
    assert set(saved) <= set(run(tmp_path / "out"))


def test_crashed_episodes_are_run_again_on_request_only(tmp_path: Path) -> None:
    class Broken(FakePolicy):
        def predict_action(self, *arguments: Any) -> Any:
            chunk = super().predict_action(*arguments)
            if len(self.batches) in (1, 2):
                raise ArithmeticError("simulated failure of the policy")
            return chunk

    broken = run(tmp_path / "out", Broken())
    assert sum(result.crashed for result in broken) == 2
    assert run(tmp_path / "out") == broken
    corrected = run(tmp_path / "out", retry_crashed=True)
    assert sum(result.crashed for result in corrected) == 0
    assert len(corrected) == 12


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes through Linux's /proc")
def test_killed_and_resumed(tmp_path: Path) -> None:
    """SIGKILL in the middle, workers and all; the same command goes on without loss or doubling."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(PROGRAM), str(out), "2", "0.05"], env=environment)
    for _ in _until(lambda: out.exists() and len(read_shards(out)) >= 3):
        assert process.poll() is None, "the run ended before it could be killed"
    workers = _descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved, _ = read_results(out)
    assert 3 <= len(saved) < 16
    assert len(workers) >= 2
    for _ in _until(lambda: not any(_alive(pid) for pid in workers)):
        pass  # orphaned workers notice and end
    results = run(out, seeds=range(8), block_size=4, env={"limit": 30, "step_s": 0.05}, num_envs=4)
    assert set(outcomes(saved)) <= set(outcomes(results))
    assert [result.key for result in results] == [EpisodeKey(n, s, 0) for n in ("ddpm", "free") for s in range(8)]
    undisturbed = run(tmp_path / "undisturbed", seeds=range(8), block_size=4)
    assert outcomes(results) == outcomes(undisturbed)


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
