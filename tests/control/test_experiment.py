"""Executors × samplers × latencies × seeds, into a folder, from wherever it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from control_fakes import SPEC, FakeDiffusion, FakeSampler, FewSteps, TickEnv

from specpolicy.control.clocks import RealTimeClock, SimulatedLatencyClock
from specpolicy.control.controller import ControllerConfig, InjectedLatency, LatencyError, grid, parse_latency
from specpolicy.control.executors import Asynchronous, Blocking, Executor, Lockstep, PreDrafting
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceResult
from specpolicy.control.latency import Constant, Empirical, LogNormal, Measured
from specpolicy.control.latency_log import CallLog, LatencyRun
from specpolicy.control.trace import read_trace
from specpolicy.evaluation.comparison import PolicyAndSamplers
from specpolicy.evaluation.control.experiment import ControlExperiment, run_control
from specpolicy.evaluation.manifest import ConfigurationMismatch
from specpolicy.evaluation.results import read_results
from specpolicy.rollout.env_worker import EnvPool, EpisodeCrash, MakeEnv, ResetRequest, WorkerConfig
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult, EpisodeSpec
from specpolicy.rollout.runner import EvaluationAborted, run_episodes, run_episodes_singly

MAKE_ENV = MakeEnv("Tick-v0", {"disable_env_checker": True, "limit": 20, "succeed_at": 18}, imports=("control_fakes",))
CONFIG = WorkerConfig(MAKE_ENV, 2, SPEC, Guards())
SAMPLERS: Mapping[str, Any] = {"exact": FakeSampler(), "few": FewSteps()}


@dataclass(frozen=True)
class FakeContestants:
    policy: FakeDiffusion = field(default_factory=FakeDiffusion)

    def __call__(self) -> PolicyAndSamplers:
        return PolicyAndSamplers(self.policy, SAMPLERS)  # type: ignore[arg-type]


def controllers(**executors: Executor) -> list[ControllerConfig]:
    chosen: Mapping[str, Executor] = executors or {"lockstep": Lockstep(4), "async": Asynchronous(4, 2)}
    latencies = {name: [parse_latency(ms, name, "nowhere") for ms in (0, 100)] for name in SAMPLERS}
    return grid({name: (each, {"play": 4}) for name, each in chosen.items()}, latencies)


def experiment(tmp_path: Path, **more: Any) -> ControlExperiment:
    checkpoint = tmp_path / "policy.pt"
    checkpoint.touch()
    values: dict[str, Any] = {"controllers": controllers(), "seeds": range(3), "num_envs": 1, "timeline": False} | more
    return ControlExperiment(
        task="tick", action_spec=SPEC, checkpoint=str(checkpoint),
        **{"contestants": FakeContestants(), "make_env": MAKE_ENV, **values},
    )  # fmt: skip


def specs(*executors: Executor, latency_s: float = 0.1, seeds: int = 3) -> list[EpisodeSpec]:
    return [
        EpisodeSpec(EpisodeKey(str(number), seed, 0), "exact", executor, Constant(latency_s))
        for seed in range(seeds)
        for number, executor in enumerate(executors)
    ]


def play(policy: FakeDiffusion, wanted: list[EpisodeSpec], num_envs: int, config: WorkerConfig) -> list[EpisodeResult]:
    with EnvPool(config, num_envs, in_process=True) as pool:
        return list(run_episodes(policy, SAMPLERS, pool, wanted, task="tick"))


def test_episodes_that_share_batches_are_those_of_episodes_alone() -> None:
    wanted = specs(Lockstep(4), Blocking(4), Asynchronous(4, 4), PreDrafting(), latency_s=0.12)
    policy = FakeDiffusion()
    together = {each.key: each for each in play(policy, wanted, 5, CONFIG)}
    assert max(policy.batches) >= 4 and len(together) == 12
    alone = run_episodes_singly(FakeDiffusion(), SAMPLERS, CONFIG, wanted, SimulatedLatencyClock, task="tick")
    for each in alone:
        trace, other = together[each.key].trace, each.trace
        assert trace is not None and other is not None
        assert trace.ticks == other.ticks and trace.inferences == other.inferences
        assert together[each.key].passes == each.passes and together[each.key].evaluations == each.evaluations
    grips = {tuple(row.action[2] for row in each.trace.ticks) for each in together.values() if each.trace}
    assert len(grips) == 12  # each seed has noise of its own, and executors use it differently


def test_in_processes_of_their_own() -> None:
    with EnvPool(CONFIG, 2) as pool:
        results = list(run_episodes(FakeDiffusion(), SAMPLERS, pool, specs(Lockstep(4)), task="tick"))
        assert {each.seed for each in results} == {0, 1, 2}
        assert all(each.success for each in results), results
        worker = pool.workers[0]
        worker.send(ResetRequest(Lockstep(4), Measured(), EpisodeKey("ddpm", 0, 0)))
        worker.receive()
        worker.send(InferenceResult(np.ones((5, 3))))
        crash = worker.receive()
        assert isinstance(crash, EpisodeCrash) and "num_envs=1" in crash.error


def test_an_experiment_ends_in_tables_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    rows = run_control(experiment(tmp_path, timeline=True), out)
    names = [f"{row.loop.executor}, {row.sampler}, {row.loop.injected}" for row in rows if row.loop]
    assert names == [
        "lockstep, exact, 0 ms", "async, exact, 0 ms", "async, exact, 100 ms",
        "lockstep, few, 0 ms", "async, few, 0 ms", "async, few, 100 ms",
    ]  # fmt: skip
    assert [row.exact for row in rows] == [True] * 3 + [False] * 3
    assert all(row.episodes == 3 and row.success is not None for row in rows)
    assert [row.loop.latency_ms for row in rows if row.loop] == [0.0, 0.0, 100.0] * 2
    assert rows[2].pairs == 3 and rows[0].pairs == 0
    row = json.loads((out / "table.json").read_text())[2]
    assert (row["sampler"], row["exact"]) == ("exact", True)
    assert row["success"][0] == 1.0 and 0.2 < row["success"][1] < 0.6
    loop = row["loop"]
    assert (loop["executor"], loop["injected"], loop["description"]["ms"]) == ("async", "100 ms", 100.0)
    assert loop["metrics"]["reaction_ms"]["p50"] == pytest.approx(100.0) and loop["metrics"]["chunks"] > 0
    assert "| async | few | approx. | 100 ms | 3/3" in (out / "table.md").read_text()
    assert (out / "success_against_latency.png").stat().st_size > 10_000
    assert len(list((out / "timelines").glob("*.png"))) == 6
    printed = capsys.readouterr().out
    assert "tick, 3 seeds" in printed and "async" in printed
    ticks = pq.read_table(out / "ticks" / "async-exact-100-ms" / "1-0.parquet").to_pydict()
    assert ticks["executor"][0] == "async" and ticks["injected"][0] == "100 ms" and len(ticks["tick"]) == 18
    records, manifest = read_results(out)
    assert len(records) == 18 and all(record.success and record.passes for record in records)
    recipe = manifest.samplers["async, exact, 100 ms"]
    assert recipe["executor"] == {"name": "async", "settings": {"play": 4}} and recipe["injected"]["ms"] == 100.0


class Interrupting(FakeDiffusion):
    """Ctrl-C at the tenth question."""

    def predict_action(self, observation: Any, sampler: Any, generator: Any, predraft: Any = None) -> Any:
        if len(self.batches) == 10:
            raise KeyboardInterrupt
        return super().predict_action(observation, sampler, generator, predraft)


def test_an_interrupted_experiment_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        run_control(experiment(tmp_path, contestants=FakeContestants(Interrupting())), out)
    before = {record.key for record in read_results(out)[0]}
    assert 0 < len(before) < 18
    counted = FakeDiffusion()
    rows = run_control(experiment(tmp_path, contestants=FakeContestants(counted)), out)
    reference = run_control(experiment(tmp_path), whole)
    assert [row.loop for row in rows] == [row.loop for row in reference]
    assert [row.successes for row in rows] == [3] * 6
    again = FakeDiffusion()
    run_control(experiment(tmp_path, contestants=FakeContestants(again)), out)
    assert len(counted.batches) > 0 and again.batches == []
    rows = run_control(experiment(tmp_path, seeds=range(4)), out)
    assert [row.episodes for row in rows] == [4] * 6


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_control(experiment(tmp_path, seeds=[0]), out)
    with pytest.raises(ConfigurationMismatch, match=r"guards\.brake_ticks"):
        run_control(experiment(tmp_path, seeds=[0], guards=Guards(brake_ticks=9)), out)
    changed = [replace(controller, settings={"play": 5}) for controller in controllers()]
    with pytest.raises(ConfigurationMismatch, match="play: 4 there, 5 now"):
        run_control(experiment(tmp_path, seeds=[0], controllers=changed), out)
    with pytest.raises(ValueError, match="two controllers of the name"):
        run_control(experiment(tmp_path, controllers=controllers() * 2), out)


class Fragile(TickEnv):
    """Breaks at the third step of some seeds."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._fragile = seed in (1, 5)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        if self._fragile and len(self.actions) == 2:
            raise RuntimeError("simulated failure of the environment")
        return super().step(action)


@dataclass(frozen=True)
class MakeFragile(MakeEnv):
    def __call__(self) -> Any:
        return Fragile(limit=20, succeed_at=18)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_crash_costs_one_episode(num_envs: int) -> None:
    config = replace(CONFIG, make_env=MakeFragile("x"))
    results = play(FakeDiffusion(), specs(Lockstep(4), seeds=7), num_envs, config)
    errors = {each.seed: each.error for each in results if each.error is not None}
    assert sorted(errors) == [1, 5] and "simulated failure of the environment" in errors[1]
    assert len(results) == 7 and all(each.trace is not None for each in results if each.error is None)


def test_crashes_are_failures_and_only_crashes_are_the_end(tmp_path: Path) -> None:
    settings = {"make_env": MakeFragile("x"), "controllers": controllers(lockstep=Lockstep(4))[:1]}
    out = tmp_path / "out"
    (row,) = run_control(experiment(tmp_path, seeds=range(7), **settings), out)
    assert (row.episodes, row.successes, row.crashed) == (7, 5, 2)
    assert row.loop is not None and row.loop.metrics.episodes == 5
    with pytest.raises(EvaluationAborted, match="simulated failure"):
        run_control(experiment(tmp_path, seeds=[1, 5], crash_limit=2, **settings), tmp_path / "other")


def test_a_sampler_that_cannot_pre_draft_is_refused_before_anything_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="'predraft' pre-drafts, and 'few' cannot"):
        run_control(experiment(tmp_path, controllers=controllers(predraft=PreDrafting())), out)
    assert not out.exists()


def test_in_real_time_episodes_run_one_by_one(tmp_path: Path) -> None:
    own = InjectedLatency("real time", Measured(), {"distribution": "real time"})
    chosen = [ControllerConfig("async", Asynchronous(4, 2), "exact", own)]
    quick = experiment(tmp_path, controllers=chosen, seeds=[0], make_clock=lambda hz, latency: RealTimeClock(200.0))
    assert quick.alone
    (row,) = run_control(quick, tmp_path / "out")
    assert row.loop is not None and row.loop.metrics.inference_ms is not None
    assert 0 < row.loop.metrics.inference_ms.p50 < 500
    assert row.loop.latency_ms == row.loop.metrics.inference_ms.p50
    trace = read_trace(tmp_path / "out" / "ticks" / "async-exact-real-time" / "0-0.parquet")
    assert len(trace.ticks) == 18


def test_the_world_that_waits_is_run_at_one_latency_only() -> None:
    names = [controller.name for controller in controllers(lockstep=Lockstep(), blocking=Blocking())]
    assert names[:3] == ["lockstep, exact, 0 ms", "blocking, exact, 0 ms", "blocking, exact, 100 ms"]
    controller = replace(controllers()[0], injected=parse_latency("lognormal:120:0.3", "x", ""))
    assert controller.slug == "lockstep-exact-about-120-ms"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    log = CallLog(True, nanoseconds=[200_000_000, 100_000_000, 300_000_000], passes=[8] * 3)
    run = LatencyRun({"ddpm": log}, "cpu", 1, 2, 3, {"machine": {"cpu": "a processor"}})
    run.write(tmp_path / "latency.json")
    return tmp_path / "latency.json"


def test_latencies_by_name(recording: Path) -> None:
    assert parse_latency(25, "ddpm", recording) == InjectedLatency(
        "25 ms", Constant(0.025), {"distribution": "constant", "ms": 25.0}
    )
    assert parse_latency("measured", "ddpm", recording).latency == Measured()
    assert parse_latency("lognormal:120:0.3", "ddpm", recording).latency == LogNormal(0.12, 0.3)
    recorded = parse_latency("recorded", "ddpm", recording)
    assert recorded.latency == Empirical((0.2, 0.1, 0.3)) and recorded.label == "recorded"
    assert recorded.description["median_ms"] == 200.0 and recorded.description["cpu"] == "a processor"
    other = parse_latency("recorded:ddpm", "ddim5", recording)  # the latency of one, whatever computes
    assert other.latency == recorded.latency and other.label == "recorded ddpm"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("soon", "write milliseconds"),
        ("-5", "0 or more"),
        ("lognormal:120", "write milliseconds"),
        ("lognormal:0:1", "median > 0"),
        ("recorded", "it has ddpm"),
    ],
)
def test_latencies_that_cannot_be_had(recording: Path, text: str, says: str) -> None:
    with pytest.raises(LatencyError, match=says):
        parse_latency(text, "asd", recording)


def test_a_missing_recording_says_how_to_make_one() -> None:
    with pytest.raises(LatencyError, match="specpolicy rollout"):
        parse_latency("recorded", "asd", "nowhere.json")


def test_a_worker_starts_afresh_after_a_failure() -> None:
    config = replace(CONFIG, make_env=MakeFragile("x"))
    results = play(FakeDiffusion(), specs(Lockstep(4), seeds=3), 1, config)
    assert [each.error is None for each in results] == [True, False, True]
