"""Episodes over seeds: alike however they are run, none lost."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from evaluation_fakes import FakeConfig, FakePolicy, FakeSampler, ReachEnv

from specpolicy.control.inference import episode_generator
from specpolicy.rollout.env_worker import (
    ChunkTransition,
    EnvPool,
    EpisodePlayer,
    MakeEnv,
    PlayChunk,
    PlayerSettings,
    Start,
    SubprocessEnvWorker,
)
from specpolicy.rollout.episodes import EpisodeResult, episode_keys
from specpolicy.rollout.runner import EvaluationAborted, rollout
from specpolicy.rollout.workers import WorkerError

REACH = MakeEnv("Reach-v0", {"disable_env_checker": True}, imports=("evaluation_fakes",))


def run(
    make_env: Callable[[], ReachEnv] | MakeEnv,
    seeds: list[int],
    num_envs: int = 1,
    policy: FakePolicy | None = None,
    repeats: int = 1,
    crash_limit: int | None = 20,
    timeout_s: float = 300.0,
    in_process: bool | None = None,
) -> list[EpisodeResult]:
    with EnvPool(make_env, 2, num_envs, timeout_s=timeout_s, in_process=in_process) as pool:
        keys = episode_keys("fake", seeds, repeats)
        episodes = rollout(policy or FakePolicy(), FakeSampler(), pool, keys, task="reach", crash_limit=crash_limit)
        return sorted(episodes, key=lambda record: record.key)


def outcome(records: list[EpisodeResult]) -> list[EpisodeResult]:
    """Records without their wall time."""
    return [dataclasses.replace(record, duration_s=0.0) for record in records]


def test_records_account_for_the_episode() -> None:
    policy = FakePolicy()
    (record,) = run(ReachEnv, [3], policy=policy)
    assert record.success
    assert record.return_ == 1
    assert record.chunks == len(policy.batches) == -(-record.steps // policy.executed)
    assert record.passes == (10,) * record.chunks
    assert record.mean_passes == 10
    assert record.evaluations == 20 * record.chunks
    assert record.duration_s > 0
    assert not record.crashed


def test_workers_and_order_change_nothing() -> None:
    one = run(ReachEnv, list(range(6)), repeats=2)
    three = run(REACH, [5, 3, 1, 0, 2, 4], num_envs=3, repeats=2)
    assert outcome(one) == outcome(three)
    assert len({(record.steps, record.seed) for record in one}) > 6  # repeats differ


def test_ended_slots_take_the_next_seed_and_idle_ones_are_not_asked_for() -> None:
    policy = FakePolicy()
    records = run(ReachEnv, list(range(7)), num_envs=3, policy=policy, in_process=True)
    sizes = [len(batch["goal"]) for batch in policy.batches]
    assert sum(sizes) == sum(record.chunks for record in records)
    # All three slots are busy until fewer than three episodes are left …
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 3
    # … and nobody waits: as many rounds as when each episode goes to the slot that is free first.
    free_at = [0, 0, 0]
    for record in records:
        slot = free_at.index(min(free_at))
        free_at[slot] += record.chunks
    assert len(sizes) == max(free_at)


def test_first_observation_fills_the_history() -> None:
    policy = FakePolicy(config=FakeConfig(3))
    player = EpisodePlayer(ReachEnv, 3)
    window = player.start(0).window["position"]
    assert window.shape == (3, 2)
    assert np.all(window == window[0])
    played = player.play(np.ones((2, 2), np.float32)).window["position"]
    np.testing.assert_allclose(played, window + 0.2 * np.array([[0], [1], [2]]))
    assert policy.config.n_obs_steps == 3


def test_a_chunk_stops_where_the_episode_ends() -> None:
    segment = EpisodePlayer(ReachEnv, 1)
    segment.start(0)
    played = segment.play(np.zeros((100, 2), np.float32))
    assert (played.steps, played.ended, played.success) == (30, True, False)


def test_max_steps_ends_episodes() -> None:
    player = EpisodePlayer(ReachEnv, 1, max_steps=5)
    player.start(0)
    assert player.play(np.zeros((100, 2), np.float32)).steps == 5


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_raising_environment_costs_its_own_episode(num_envs: int) -> None:
    make_env = partial(ReachEnv, raising=(2,))
    records = run(make_env, list(range(6)), num_envs, in_process=True)
    assert [record.crashed for record in records] == [False, False, True, False, False, False]
    assert "RuntimeError: simulated failure of seed 2 (evaluation_fakes.py:" in str(records[2].error)
    assert not records[2].success
    undisturbed = run(ReachEnv, [0, 1, 3, 4, 5])
    assert outcome([record for record in records if not record.crashed]) == outcome(undisturbed)


def test_a_dying_process_costs_its_own_episode() -> None:
    records = run(partial(ReachEnv, dying=(1,), raising=(3,)), list(range(5)), num_envs=2)
    assert [record.crashed for record in records] == [False, True, False, True, False]
    assert "died (exit code 7)" in str(records[1].error)
    assert "RuntimeError: simulated failure of seed 3 (evaluation_fakes.py:" in str(records[3].error)


def test_a_hanging_process_is_killed_and_replaced() -> None:
    slot = SubprocessEnvWorker(PlayerSettings(partial(ReachEnv, hanging=(2,)), 1), timeout_s=60)
    try:
        slot.send(Start(2))
        assert isinstance(slot.receive(), ChunkTransition)
        slot.timeout_s = 0.5
        slot.send(PlayChunk(np.zeros((4, 2), np.float32)))
        assert slot.receive() == WorkerError("the environment's process gave no answer in 0.5 s and was killed")
        slot.timeout_s = 60
        slot.send(Start(2))
        assert isinstance(slot.receive(), ChunkTransition)
    finally:
        slot.close()


def test_a_failing_policy_costs_the_culprit_only() -> None:
    culprit = episode_generator(2, 0).initial_seed()
    for policy, reason in ((FakePolicy(poison=culprit), "ArithmeticError"), (FakePolicy(nan=culprit), "NaN")):
        records = run(ReachEnv, list(range(4)), num_envs=2, policy=policy, in_process=True)
        assert [record.crashed for record in records] == [False, False, True, False]
        assert f"policy: {reason}" in str(records[2].error) or reason in str(records[2].error)
        # The others' random streams were wound back before they were asked again.
        undisturbed = run(ReachEnv, [0, 1, 3])
        assert outcome([record for record in records if not record.crashed]) == outcome(undisturbed)


def test_nothing_but_crashes_aborts() -> None:
    make_env = partial(ReachEnv, raising=range(100))
    with pytest.raises(EvaluationAborted, match=r"4 episodes crashed in a row.*simulated failure of seed 3"):
        run(make_env, list(range(100)), crash_limit=4)
    assert len(run(make_env, list(range(30)), crash_limit=None)) == 30


def test_an_environment_without_success_says_so() -> None:
    with pytest.raises(EvaluationAborted, match="info has no 'success'"):
        run(MakeEnv("MountainCarContinuous-v0"), [0, 1, 2], policy=BlindPolicy(), crash_limit=2)


class BlindPolicy(FakePolicy):
    """One action, whatever it sees."""

    def predict_action(self, observation: object, sampler: object, generator: object) -> object:  # type: ignore[override]
        chunk = super().predict_action(
            {"goal": np.zeros((1, 2, 2)), "position": np.zeros((1, 2, 2))}, FakeSampler(), generator
        )  # type: ignore[arg-type]
        return dataclasses.replace(chunk, actions=chunk.actions[..., :1])


def test_an_environment_that_cannot_be_made_is_a_crash_with_its_reason() -> None:
    with pytest.raises(EvaluationAborted, match=r"NameNotFound.*NoSuchEnv"):
        run(MakeEnv("NoSuchEnv-v0"), list(range(9)), crash_limit=3)


def test_interrupting_leaves_the_pool_usable() -> None:
    with EnvPool(REACH, 2, num_envs=2) as pool:
        keys = episode_keys("fake", range(6))
        episodes = rollout(FakePolicy(), FakeSampler(), pool, keys, task="reach")
        next(episodes)
        episodes.close()  # type: ignore[attr-defined]
        again = list(rollout(FakePolicy(), FakeSampler(), pool, keys, task="reach"))
    assert outcome(sorted(again, key=lambda record: record.key)) == outcome(run(ReachEnv, list(range(6))))


class ThreadEnv(ReachEnv):
    """Succeeds where numerical libraries are held to one thread."""

    def step(self, action: Any) -> Any:
        return super().step(action)[0], 0.0, True, False, {"success": os.environ.get("OMP_NUM_THREADS") == "1"}


def test_workers_have_one_thread_and_leave_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    (record,) = run(ThreadEnv, [0], num_envs=1, in_process=False)
    assert record.success
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_streams_differ_by_seed_and_repeat_and_are_stable() -> None:
    seeds = {episode_generator(seed, repeat).initial_seed() for seed in range(50) for repeat in range(4)}
    assert len(seeds) == 200
    assert episode_generator(100_000, 3).initial_seed() == episode_generator(100_000, 3).initial_seed()


@pytest.mark.parametrize(("seeds", "repeats"), [([], 1), ([1, 1], 1), ([-1], 1), ([1], 0)])
def test_impossible_seeds_are_refused(seeds: list[int], repeats: int) -> None:
    with pytest.raises(ValueError, match=r"seeds|repeats"):
        episode_keys("fake", seeds, repeats)
