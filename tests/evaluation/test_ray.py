"""Ray workers give what this process gives, whoever is killed on the way. One cluster for all: it starts slowly."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import evaluation_fakes
import pytest
from evaluation_fakes import FakeContestants, HomeOnly, LethalPolicy, outcomes, reach

from specpolicy.evaluation.compare import run_missing
from specpolicy.evaluation.comparison import CheckpointLoader
from specpolicy.evaluation.launchers.local import LauncherError
from specpolicy.evaluation.launchers.ray import RayLauncher
from specpolicy.evaluation.results import read_results
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.rollout.runner import EvaluationAborted
from specpolicy.samplers import sequential

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'specpolicy[ray]'")
pytestmark = pytest.mark.slow  # a real cluster


def test_an_absent_cluster_is_named() -> None:
    launcher = RayLauncher(address="127.0.0.1:1")
    with (
        pytest.raises(LauncherError, match=r"no Ray cluster at launcher\.address=127\.0\.0\.1:1"),
        launcher.connected(ray),
    ):
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster on this machine whose workers can import the fakes; its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's 15 waits for every other test
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(evaluation_fakes.__file__).parent), *sys.path]))
        with RayLauncher(num_cpus=2).connected(ray):
            yield ray.get_runtime_context().gcs_address


ONE_UNIT = {"repeats": {"ddpm": 1}, "block_size": 6}


def run(folder: Path, launcher: RayLauncher | None = None, **changes: Any) -> Any:
    run_missing({"reach": reach(folder.parent / "weights", **changes)}, {"reach": folder}, launcher)
    return outcomes(read_results(folder)[0])


def test_a_killed_worker_changes_nothing(cluster: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = run(tmp_path / "here")
    lethal = FakeContestants(LethalPolicy(marker=tmp_path / "killed"))
    with caplog.at_level(logging.WARNING):
        there = run(tmp_path / "there", RayLauncher(), contestants=lethal)
    assert (tmp_path / "killed").exists()
    assert "a worker died over one unit of work (reach, " in caplog.text
    assert there == here
    assert (tmp_path / "there" / "observations.npz").exists()


def test_a_network_gives_the_same_to_the_bit_where_the_threads_are_the_same(cluster: str, tmp_path: Path) -> None:
    config = PolicyConfig(
        task="reach",
        observations={"position": 2, "goal": 2},
        action_dim=2,
        network={"name": "unet1d", "channels": [8], "timestep_dim": 8},
        scheduler={"num_train_timesteps": 10},
    )
    DiffusionPolicy(config).save_pretrained(tmp_path / "checkpoint")
    recipes = {"ddpm": partial(sequential, num_inference_steps=10)}
    policy = CheckpointLoader(str(tmp_path / "checkpoint"), "reach", recipes).pinned()
    same = {"contestants": policy, "repeats": {"ddpm": 2}, "num_envs": 3, "threads": 1, "block_size": 6}
    here, there = run(tmp_path / "here", **same), run(tmp_path / "there", RayLauncher(), **same)
    assert len(here) == 12 and there == here


def test_a_killed_driver_loses_and_doubles_nothing(cluster: str, tmp_path: Path) -> None:
    program = Path(__file__).with_name("killable_comparison.py")
    process = subprocess.Popen([sys.executable, str(program), cluster, str(tmp_path)], env=driver_environment())
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("out/episodes-*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved, _ = read_results(tmp_path / "out")
    assert 0 < len(saved) < 18
    ended = run(tmp_path / "out", RayLauncher(cpus_per_worker=2), env={"step_s": 0.03})
    assert len(ended) == 18 and set(outcomes(saved)) < set(ended)
    assert ended == run(tmp_path / "undisturbed")


def driver_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(evaluation_fakes.__file__).parent), *sys.path])}


def test_what_cannot_work_says_so(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match=r"workers died 2 times over one unit of work \(reach, ddpm, 6 episodes"):
        run(tmp_path / "deadly", RayLauncher(attempts=2), contestants=FakeContestants(LethalPolicy()), **ONE_UNIT)
    with pytest.raises(LauncherError, match="each claims 3 CPU, the cluster has 2"):
        run(tmp_path / "large", RayLauncher(cpus_per_worker=3))
    with pytest.raises(LauncherError, match=r"a worker cannot do its work .*no such checkpoint on this machine"):
        run(tmp_path / "absent", RayLauncher(), contestants=HomeOnly(), **ONE_UNIT)


def test_crashes_end_the_run_and_what_ended_is_saved(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationAborted, match="2 episodes crashed in a row"):
        run(tmp_path / "out", RayLauncher(), env={"raising": list(range(6))}, crash_limit=2, **ONE_UNIT)
    assert [record.crashed for record in read_results(tmp_path / "out")[0]] == [True, True]


def test_nothing_to_do_needs_no_cluster(tmp_path: Path) -> None:
    run(tmp_path / "out")
    launcher = RayLauncher(address="nowhere:1")
    assert len(run(tmp_path / "out", launcher)) == 18
