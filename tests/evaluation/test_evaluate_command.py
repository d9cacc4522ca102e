"""``specpolicy evaluate``: the whole command on a point that walks to a goal, with tiny untrained policies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import evaluation_fakes
import pytest
import torch

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.config import ConfigError, parse_repeats, parse_seeds
from specpolicy.evaluation.results import read_results, shard_paths
from specpolicy.policies.checkpoint import write_seen_seeds
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy


def save_policy(folder: Path, task: str) -> None:
    torch.manual_seed(0)
    config = PolicyConfig(
        task=task,
        observations={"position": 2, "goal": 2},
        action_dim=2,
        network={"name": "unet1d", "channels": [8], "timestep_dim": 8},
        scheduler={"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"},
    )
    DiffusionPolicy(config).save_pretrained(folder)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Checkpoints of two tasks."""
    save_policy(tmp_path / "checkpoints" / "square", "square")
    save_policy(tmp_path / "checkpoints" / "tool_hang", "tool_hang")
    return tmp_path


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr("specpolicy.evaluation.plots.plot_summary", lambda *_: None)


def job(folder: Path, *more: str) -> list[str]:
    return [
        "evaluate", "sampler=[ddpm20,ddim2]", "task.env=evaluation_fakes:SlowReach-v0", "num_envs=1",
        f"checkpoint={folder}/checkpoints/${{task.name}}", "latency_calls=0", "seeds=3", f"out={folder}/out", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_all_tasks_that_have_a_checkpoint(tasks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(job(tasks, "task=all", "repeats=[ddpm20:2]", "latency_calls=2")) == 0
    table = json.loads((tasks / "out" / "table.json").read_text())
    assert list(table["tasks"]) == ["square", "tool_hang"]
    assert [row["sampler"] for row in table["overall"]] == ["ddpm20", "ddim2"]
    for task in ("square", "tool_hang"):
        records, manifest = read_results(tasks / "out" / task)
        assert {(record.sampler, record.seed, record.repeat) for record in records} == {
            (sampler, seed, repeat)
            for sampler, repeats in (("ddpm20", 2), ("ddim2", 1))
            for seed in (100_000, 100_001, 100_002)
            for repeat in range(repeats)
        }
        assert manifest.configuration["task"] == task and manifest.samplers["ddim2"]["exact"] is False
        assert {"latency.json", "table.md", "latency_against_success.png"} <= set(os.listdir(tasks / "out" / task))
    output = capfd.readouterr()
    assert "left out for want of a checkpoint" in output.err and "all tasks" in output.out


@pytest.mark.usefixtures("no_plot")
def test_compiled_samplers_play_the_same_episodes(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("sampler=[ddpm20,free_block20]", "num_envs=2", "seeds=3")
    assert main(job(tasks, *more, f"out={tasks}/eager")) == 0
    assert main(job(tasks, *more, f"out={tasks}/compiled", "compile=plain", "latency_calls=2")) == 0
    (wanted, _), (got, manifest) = (read_results(tasks / name / "square") for name in ("eager", "compiled"))
    told = [[(r.sampler, r.seed, r.steps, r.mean_passes, r.crashed) for r in records] for records in (wanted, got)]
    assert sorted(told[0]) == sorted(told[1])
    recipe = manifest.samplers["ddpm20"]["recipe"]
    assert (recipe["_target_"], recipe["backend"], recipe["batches"]) == (
        "specpolicy.samplers.compiled", "plain", [1, 2],
    )  # fmt: skip
    assert main(job(tasks, *more, f"out={tasks}/compiled")) == EXIT_USER_ERROR  # not the samplers that the folder has
    assert "ddpm20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task=juggling", "unknown task 'juggling'; known: "),
        ("task=[square,pusht]", "task pusht: no checkpoint at"),
        ("seeds=[5,5]", "[5] are there twice and would give the same episodes again"),
        ("seeds=0", "at least one seed"),
        ("repeats=[asd:3]", "names 'asd', which does not take part; ddpm20, ddim2 do"),
        ("repeats=0", "at least one episode"),
        ("launcher=slurm", "unknown launcher 'slurm'; known: local, ray"),
        ("block_size=0", "block_size must be at least 1"),
    ],
)
def test_mistakes_are_answered_in_one_line_before_anything_runs(
    tasks: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    assert main(job(tasks, override)) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert not list((tasks / "out").glob("*/episodes*"))


@pytest.mark.usefixtures("no_plot")
def test_a_missing_extra_is_named_and_nothing_is_lost(
    tasks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(job(tasks, "seeds=1")) == 0
    before, _ = read_results(tasks / "out" / "square")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(job(tasks, "seeds=2", "launcher=ray")) == EXIT_USER_ERROR
    assert "pip install 'specpolicy[ray]'" in capsys.readouterr().err
    assert read_results(tasks / "out" / "square")[0] == before


@pytest.mark.usefixtures("no_plot")
def test_seeds_of_demonstrations_are_refused_and_a_rollout_warns(
    tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seen_seeds(tasks / "checkpoints" / "square", range(40))
    assert main(job(tasks, "seeds=39:41")) == EXIT_USER_ERROR
    assert "1 of 2 seeds (39) are initial states of the demonstrations" in capsys.readouterr().err
    assert not (tasks / "out").exists()
    assert main(["rollout", *job(tasks, "seeds=39:41", "video=[]")[1:]]) == 0
    assert "warning: square: 1 of 2 seeds (39)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("no_plot")
def test_killed_twice_it_ends_with_the_same_table(tasks: Path) -> None:
    paths = [str(Path(evaluation_fakes.__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "specpolicy.cli", *job(tasks, "repeats=2")]
    seen: set[Any] = set()
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        there = set(shard_paths(tasks / "out" / "square"))
        deadline = time.monotonic() + 300
        while set(shard_paths(tasks / "out" / "square")) <= there:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        records, _ = read_results(tasks / "out" / "square")
        assert seen < set(records), "nothing is lost, and something was gained"
        seen = set(records)
    assert len(seen) < 12 and not (tasks / "out" / "square" / "table.json").exists()
    assert main(command[3:]) == 0
    records, _ = read_results(tasks / "out" / "square")
    assert seen < set(records) and len(records) == 12
    assert main([*command[3:], f"out={tasks}/undisturbed"]) == 0
    for table in ("table.json", "square/table.json", "square/table.md"):
        assert (tasks / "out" / table).read_text() == (tasks / "undisturbed" / table).read_text()


def test_how_seeds_and_repeats_are_asked_for() -> None:
    assert parse_seeds(3, counted_from=100_000) == [100_000, 100_001, 100_002]
    assert parse_seeds([3], counted_from=100_000) == parse_seeds(3) == [3]
    assert parse_seeds("2:4", counted_from=100_000) == [2, 3]
    assert parse_repeats(3, ["a", "b"]) == {"a": 3, "b": 3}
    assert parse_repeats(["b:2"], ["a", "b"]) == {"a": 1, "b": 2}
    assert parse_repeats([4, "b:2"], ["a", "b"]) == {"a": 4, "b": 2}
    for wrong in ("many", ["b:many"], ["c:2"], 0):
        with pytest.raises(ConfigError, match="repeats="):
            parse_repeats(wrong, ["a", "b"])  # type: ignore[arg-type]
