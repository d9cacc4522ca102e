"""Comparisons in results folders, of one task and of several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_fakes import FakeChunk, FakeConfig, FakeContestants, FakePolicy, outcomes, reach

from specpolicy.evaluation.compare import (
    ResultsOfOneTask,
    SeedsSeenInTraining,
    compare,
    compare_tasks,
    require_unseen,
    run_missing,
)
from specpolicy.evaluation.manifest import ConfigurationMismatch
from specpolicy.evaluation.results import CorruptShardWarning, read_results, shard_paths
from specpolicy.policies.checkpoint import CheckpointError, write_seen_seeds
from specpolicy.rollout.runner import EvaluationAborted


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr("specpolicy.evaluation.plots.plot_summary", lambda *_: None)


def test_repeats_are_counted_by_sampler(tmp_path: Path) -> None:
    rows = compare(reach(tmp_path / "weights"), tmp_path / "out")
    assert [(row.sampler, row.episodes, row.seeds, row.pairs) for row in rows] == [
        ("ddpm", 12, 6, 0),
        ("free", 6, 6, 6),
    ]
    assert "Repeats of a seed count as a cluster" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.usefixtures("no_plot")
def test_latency_is_measured_on_observations_of_the_episodes_and_kept(tmp_path: Path) -> None:
    comparison = reach(tmp_path / "weights", latency_calls=3)
    first = compare(comparison, tmp_path / "out")
    assert all(row.latency is not None and row.latency.calls == 3 for row in first)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    assert compare(comparison, tmp_path / "out") == first
    again = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    assert {name for name in files if files[name] != again[name]} == {"manifest.json"}  # which notes the run
    (row,) = compare(replace(comparison, repeats={"free": 1}, contestants=only("free")), tmp_path / "out")
    assert row.latency is not None and row.latency.p50 == first[1].latency.p50  # type: ignore[union-attr]


def test_a_busy_machine_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specpolicy.evaluation.launchers.local.machine", busy)
    comparison = reach(tmp_path / "weights")
    run_missing({"reach": replace(comparison, threads=1)}, {"reach": tmp_path / "one"})
    assert "busy" not in caplog.text
    run_missing({"reach": comparison}, {"reach": tmp_path / "all"})
    assert "this machine is busy (load 7.5 on 8 cores), torch's 8 threads" in caplog.text


def busy() -> dict[str, object]:
    return {"torch_threads": 8, "load_1min": 7.5, "cores": 8}


def only(name: str) -> FakeContestants:
    return FakeContestants(samplers={name: FakeContestants().samplers[name]})


@pytest.mark.usefixtures("no_plot")
def test_several_tasks_each_in_its_folder_and_a_table_over_all(tmp_path: Path) -> None:
    near = reach(tmp_path / "weights")
    far = reach(
        tmp_path / "weights", task="far", contestants=FakeContestants(FakePolicy(config=FakeConfig(n_action_steps=2)))
    )
    rows = compare_tasks({"reach": near, "far": far}, tmp_path / "out")
    assert [row.sampler for row in rows] == ["ddpm", "free"]
    tables = {task: json.loads((tmp_path / "out" / task / "table.json").read_text()) for task in ("reach", "far")}
    whole = json.loads((tmp_path / "out" / "table.json").read_text())
    assert whole["tasks"] == tables
    free = whole["overall"][1]
    assert free["success"][0] == pytest.approx(sum(table[1]["success"][0] for table in tables.values()) / 2)
    assert free["successes"]["far"] == tables["far"][1]["success"]
    assert 0 < free["p_value"] <= 1 and whole["overall"][0]["p_value"] is None
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| sampler | distribution | reach, % | far, % |" in text and "## far" in text


def test_nothing_runs_before_every_task_can(tmp_path: Path) -> None:
    fine, other = reach(tmp_path / "weights"), reach(tmp_path / "weights", task="other")
    run_missing({"other": other}, {"other": tmp_path / "out" / "other"})
    changed = replace(other, make_env=replace(other.make_env, kwargs={**other.make_env.kwargs, "step_s": 0.001}))
    before = sorted((tmp_path / "out" / "other").iterdir())
    with pytest.raises(ConfigurationMismatch, match=r"other holds results of another.*\n.*step_s: \(absent\) there"):
        compare_tasks({"reach": fine, "other": changed}, tmp_path / "out")
    assert shard_paths(tmp_path / "out" / "reach") == []
    assert sorted((tmp_path / "out" / "other").iterdir()) == before


def test_a_folder_of_one_task_is_no_place_for_several(tmp_path: Path) -> None:
    comparison = reach(tmp_path / "weights")
    run_missing({"reach": comparison}, {"reach": tmp_path / "out"})
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(ResultsOfOneTask, match="choose a folder above it"):
        compare_tasks({"reach": comparison}, tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == before


@pytest.mark.usefixtures("no_plot")
def test_a_corrupt_shard_is_set_aside_and_its_episodes_run_again(tmp_path: Path) -> None:
    comparison = reach(tmp_path / "weights")
    rows = compare(comparison, tmp_path / "out")
    records = outcomes(read_results(tmp_path / "out")[0])
    (shard,) = shard_paths(tmp_path / "out")
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.warns(CorruptShardWarning, match="its episodes will be run again"):
        assert compare(comparison, tmp_path / "out") == rows
    assert outcomes(read_results(tmp_path / "out")[0]) == records
    assert shard.with_name(shard.name + ".corrupt").exists()


def test_crashes_end_a_run_that_cannot_work_and_can_be_retried(tmp_path: Path) -> None:
    comparison = reach(tmp_path / "weights", seeds=range(9), crash_limit=3)
    broken = replace(comparison, contestants=FakeContestants(FailingPolicy()))
    with pytest.raises(EvaluationAborted, match="3 episodes crashed in a row"):
        run_missing({"reach": broken}, {"reach": tmp_path / "out"})
    assert len(read_results(tmp_path / "out")[0]) == 3
    run_missing({"reach": replace(comparison, retry_crashed=True)}, {"reach": tmp_path / "out"})
    records, _ = read_results(tmp_path / "out")
    assert len(records) == 27 and not any(record.crashed for record in records)


class FailingPolicy(FakePolicy):
    """Cannot act."""

    def predict_action(self, observation: object, sampler: object, generator: object) -> FakeChunk:
        raise ArithmeticError("no answer today")


def test_seeds_of_the_demonstrations_are_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    comparison = replace(reach(tmp_path / "weights", seeds=[3, 7, 8]), checkpoint=str(checkpoint))
    require_unseen(comparison)  # nothing is on record
    write_seen_seeds(checkpoint, [7, 8, 9])
    with pytest.raises(SeedsSeenInTraining, match=r"2 of 3 seeds \(7, 8\) are initial states of the demonstrations"):
        require_unseen(comparison)
    require_unseen(replace(comparison, seeds=[3, 4]))
    (checkpoint / "demonstrations.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        require_unseen(comparison)
