"""Latency, side by side."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_fakes import FakePolicy, FakeSampler, ReachEnv

from specpolicy.control.executors import Lockstep
from specpolicy.control.latency_log import LatencyRun
from specpolicy.evaluation.latency import measure_latency
from specpolicy.rollout.env_worker import EnvPool, WorkerConfig
from specpolicy.rollout.episodes import EpisodeSpec, episode_keys
from specpolicy.rollout.runner import ObservationRecorder, run_episodes

OBSERVATIONS = [{"position": np.full((1, 2, 2), float(i)), "goal": np.zeros((1, 2, 2))} for i in range(3)]


class SleepyPolicy(FakePolicy):
    """Takes a tenth of a millisecond a pass, the first call much longer; notes who asked with what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, float, int]] = []
        self.states: list[tuple[int, bool]] = []

    def predict_action(self, observation: Any, sampler: Any, generator: Any) -> Any:
        self.asked.append((sampler.passes, observation["position"][0, 0, 0], generator[0].initial_seed()))
        self.states.append((torch.get_num_threads(), gc.isenabled()))
        time.sleep(0.5 if len(self.asked) == 1 else 1e-4 * sampler.passes)
        return super().predict_action(observation, sampler, generator)


SAMPLERS = {
    "slow": FakeSampler(passes=40),
    "fast": FakeSampler(passes=10, exact=False, rounds=((0, 5), (6, 3), (-1, -1))),
}


def test_samplers_take_turns_on_the_same_observations_and_noise() -> None:
    policy = SleepyPolicy()
    run = measure_latency(policy, SAMPLERS, OBSERVATIONS, calls=20, warmup=2)
    rounds = [policy.asked[at : at + 2] for at in range(0, len(policy.asked), 2)]
    assert len(rounds) == 22
    assert all({first[0], second[0]} == {10, 40} and first[1:] == second[1:] for first, second in rounds)
    assert 0 < sum(first[0] == 40 for first, _ in rounds) < 22  # nobody always goes first
    assert len({each[2] for each in policy.asked}) == 22
    assert [first[1] for first, _ in rounds[2:]] == [float(call % 3) for call in range(20)]
    assert run.observations == 3


def test_durations_and_accounts_are_those_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still but for what the policy sleeps: what else the machine does is not what is tested."""
    now = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + round(1e9 * seconds)))
    run = measure_latency(SleepyPolicy(), SAMPLERS, OBSERVATIONS, calls=15, warmup=1)
    slow, fast = run.samplers["slow"], run.samplers["fast"]
    assert len(slow.nanoseconds) == len(fast.nanoseconds) == 15
    assert slow.nanoseconds == [4_000_000] * 15  # the slow first call was a warm-up
    assert fast.nanoseconds == [1_000_000] * 15
    assert (slow.passes, fast.evaluations) == ([40] * 15, [20] * 15)
    assert (slow.exact, fast.exact) == (True, False)
    assert slow.rounds is None and slow.drafted is None
    assert fast.rounds == [[[0, 5], [6, 3]]] * 15
    assert fast.drafted == [[8, 8]] * 15


def test_threads_and_garbage_collection_are_put_back() -> None:
    policy, before = SleepyPolicy(), torch.get_num_threads()
    run = measure_latency(policy, SAMPLERS, OBSERVATIONS, calls=1, warmup=0, threads=3)
    assert run.threads == 3
    assert policy.states == [(3, False)] * 2
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_runs_are_written_and_read_back(tmp_path: Path) -> None:
    run = measure_latency(SleepyPolicy(), SAMPLERS, OBSERVATIONS, calls=3, warmup=0, provenance={"cpu": "x"})
    run.write(tmp_path / "deep" / "latency.json")
    assert LatencyRun.read(tmp_path / "deep" / "latency.json") == run


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "samplers": {"a": {"b": 1}}}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "latency.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a latency measurement"):
        LatencyRun.read(path)


@pytest.mark.parametrize(
    ("samplers", "observations", "calls", "message"),
    [
        ({}, OBSERVATIONS, 1, "at least one sampler"),
        (SAMPLERS, [], 1, "at least one"),
        (SAMPLERS, OBSERVATIONS, 0, "one call"),
        (SAMPLERS, [{"goal": np.zeros((2, 2, 2))}], 1, "one observation at a time"),
    ],
)
def test_bad_input_is_refused(samplers: Any, observations: Any, calls: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_latency(FakePolicy(), samplers, observations, calls=calls)


def test_a_tap_collects_single_observations_of_real_episodes() -> None:
    tap = ObservationRecorder(FakePolicy(), limit=7)
    specs = [EpisodeSpec(key, "fake", Lockstep(4)) for key in episode_keys("fake", range(4))]
    with EnvPool(WorkerConfig(ReachEnv, 2), num_envs=3, in_process=True) as pool:
        records = list(run_episodes(tap, {"fake": FakeSampler()}, pool, specs, task="reach"))
    assert len(records) == 4
    shapes = defaultdict(set)
    for observation in tap.observations:
        for name, part in observation.items():
            shapes[name].add(part.shape)
    assert dict(shapes) == {"position": {(1, 2, 2)}, "goal": {(1, 2, 2)}}
    assert 4 <= len(tap.observations) <= 7
    assert len({observation["goal"].tobytes() for observation in tap.observations}) > 2
    measure_latency(FakePolicy(), SAMPLERS, tap.observations, calls=1)


def test_a_tap_keeps_late_observations_as_well_as_early_ones() -> None:
    tap, asked = ObservationRecorder(FakePolicy(), limit=7), 100
    for number in range(asked):
        tap.predict_action(
            {"position": np.full((1, 2, 2), float(number)), "goal": np.zeros((1, 2, 2))},
            FakeSampler(),
            [torch.Generator()],
        )
    kept = [int(observation["position"][0, 0, 0]) for observation in tap.observations]
    assert kept == list(range(0, asked, 16))
