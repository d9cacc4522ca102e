"""Episodes over seeds: the same however they are run, none lost."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from evaluation_fakes import FakePolicy, FakeSampler, ReachEnv

from specpolicy.control.action_space import ActionSpec
from specpolicy.control.executors import Asynchronous, Lockstep
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceRequest, InferenceResult, episode_generator
from specpolicy.control.latency import Constant
from specpolicy.rollout.env_worker import EnvPool, EpisodeHandler, MakeEnv, ResetRequest, WorkerConfig
from specpolicy.rollout.episodes import EpisodeKey, EpisodeResult, EpisodeSpec, episode_keys
from specpolicy.rollout.runner import EvaluationAborted, run_episodes
from specpolicy.rollout.workers import SubprocessWorker, WorkerError

REACH = MakeEnv("Reach-v0", {"disable_env_checker": True}, imports=("evaluation_fakes",))
SAMPLERS = {"fake": FakeSampler()}


def specs(seeds: Any, repeats: int = 1, n_action_steps: int = 4) -> list[EpisodeSpec]:
    return [EpisodeSpec(key, "fake", Lockstep(n_action_steps)) for key in episode_keys("fake", seeds, repeats)]


def run(
    make_env: Callable[[], ReachEnv] | MakeEnv,
    seeds: list[int],
    num_envs: int = 1,
    policy: FakePolicy | None = None,
    repeats: int = 1,
    crash_limit: int | None = 20,
    timeout_s: float = 300.0,
    in_process: bool | None = None,
    **config: Any,
) -> list[EpisodeResult]:
    with EnvPool(WorkerConfig(make_env, 2, **config), num_envs, timeout_s, in_process) as pool:
        results = run_episodes(
            policy or FakePolicy(), SAMPLERS, pool, specs(seeds, repeats), task="reach", crash_limit=crash_limit
        )
        return sorted(results, key=lambda result: result.key)


def outcome(results: list[EpisodeResult]) -> list[EpisodeResult]:
    """Results without their wall time."""
    return [dataclasses.replace(result, duration_s=0.0) for result in results]


def test_a_result_accounts_for_the_episode() -> None:
    policy = FakePolicy()
    (result,) = run(ReachEnv, [3], policy=policy)
    assert result.success
    assert result.return_ == 1
    assert result.chunks == len(policy.batches) == -(-result.steps // 4)
    assert result.passes == (10,) * result.chunks
    assert result.mean_passes == 10
    assert result.evaluations == 20 * result.chunks
    assert result.duration_s > 0
    assert not result.crashed
    assert result.trace is not None and len(result.trace.ticks) == result.steps


def test_workers_and_order_change_nothing() -> None:
    one = run(ReachEnv, list(range(6)), repeats=2)
    three = run(REACH, [5, 3, 1, 0, 2, 4], num_envs=3, repeats=2)
    assert outcome(one) == outcome(three)
    assert len({(result.steps, result.seed) for result in one}) > 6  # repeats differ


def test_free_workers_take_the_next_seed_and_idle_ones_are_not_inferred_for() -> None:
    policy = FakePolicy()
    results = run(ReachEnv, list(range(7)), num_envs=3, policy=policy, in_process=True)
    sizes = [len(batch["goal"]) for batch in policy.batches]
    assert sum(sizes) == sum(result.chunks for result in results)
    # All three workers are busy until fewer than three episodes are left …
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 3
    # … and nobody waits: as many rounds as when each episode goes to the worker that is free first.
    free_at = [0, 0, 0]
    for result in results:
        worker = free_at.index(min(free_at))
        free_at[worker] += result.chunks
    assert len(sizes) == max(free_at)


def test_the_policy_sees_the_first_observation_repeated_and_then_the_last_ones() -> None:
    handler = EpisodeHandler(WorkerConfig(ReachEnv, 3))
    first = handler(ResetRequest(Lockstep(2), Constant(0.0), EpisodeKey("ddpm", 1, 0)))
    assert isinstance(first, InferenceRequest)
    window = first.window["position"]
    assert window.shape == (3, 2)
    assert np.all(window == window[0])
    played = handler(InferenceResult(-np.ones((2, 2))))
    assert isinstance(played, InferenceRequest)
    np.testing.assert_allclose(played.window["position"], window - 0.2 * np.array([[0], [1], [2]]), atol=1e-6)


def test_a_chunk_stops_where_the_episode_ends() -> None:
    handler = EpisodeHandler(WorkerConfig(ReachEnv, 1))
    handler(ResetRequest(Lockstep(100), Constant(0.0), EpisodeKey("ddpm", 0, 0)))
    trace = handler(InferenceResult(np.zeros((100, 2))))
    assert (len(trace.ticks), trace.success) == (30, False)  # type: ignore[union-attr]


def test_max_ticks_ends_episodes() -> None:
    assert [result.steps for result in run(ReachEnv, [0, 1], max_ticks=3)] == [3, 3]
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=r"max_ticks=.*expected a whole number from 1"):
            WorkerConfig(ReachEnv, 2, max_ticks=wrong)  # type: ignore[arg-type]


def test_actions_are_sent_as_they_are_without_guards_and_checked_with_them() -> None:
    """ReachEnv moves by the clipped action, so episodes agree where actions beyond the box are clipped before."""
    free = run(ReachEnv, [0, 1, 2], policy=Hasty())
    guarded = run(ReachEnv, [0, 1, 2], policy=Hasty(), guards=Guards(), action_spec=ActionSpec((0, 1)))
    assert [result.steps for result in free] == [result.steps for result in guarded]

    def largest(results: list[EpisodeResult]) -> float:
        return max(abs(value) for each in results if each.trace for row in each.trace.ticks for value in row.action)

    assert largest(free) > 1 and largest(guarded) == 1
    assert guarded[0].trace is not None and guarded[0].trace.faults["out_of_range"] > 0
    (moving,) = specs([0])
    with EnvPool(WorkerConfig(ReachEnv, 2)) as pool:
        moving = dataclasses.replace(moving, executor=Asynchronous(4))
        (result,) = run_episodes(FakePolicy(), SAMPLERS, pool, [moving], task="reach")
    assert "takes guards" in str(result.error)


class Hasty(FakePolicy):
    """Ten times too fast."""

    def predict_action(self, *arguments: Any) -> Any:
        chunk = super().predict_action(*arguments)
        return dataclasses.replace(chunk, actions=10 * chunk.actions)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_raising_environment_costs_its_own_episode(num_envs: int) -> None:
    make_env = partial(ReachEnv, raising=(2,))
    results = run(make_env, list(range(6)), num_envs, in_process=True)
    assert [result.crashed for result in results] == [False, False, True, False, False, False]
    assert "RuntimeError: simulated failure of seed 2 (evaluation_fakes.py:" in str(results[2].error)
    assert not results[2].success
    assert (results[2].steps, results[2].passes) == (2, (10,))  # what is known of it
    undisturbed = run(ReachEnv, [0, 1, 3, 4, 5])
    assert outcome([result for result in results if not result.crashed]) == outcome(undisturbed)


def test_a_dying_process_costs_its_own_episode() -> None:
    results = run(partial(ReachEnv, dying=(1,), raising=(3,)), list(range(5)), num_envs=2)
    assert [result.crashed for result in results] == [False, True, False, True, False]
    assert "died (exit code 7)" in str(results[1].error) and results[1].passes == (10,)
    assert "RuntimeError: simulated failure of seed 3 (evaluation_fakes.py:" in str(results[3].error)


def test_a_hanging_process_is_killed_and_replaced() -> None:
    config = WorkerConfig(partial(ReachEnv, hanging=(2,)), 1)
    worker = SubprocessWorker(partial(EpisodeHandler, config), 60, "the environment's process")
    reset = ResetRequest(Lockstep(4), Constant(0.0), EpisodeKey("ddpm", 2, 0))
    try:
        worker.send(reset)
        assert isinstance(worker.receive(), InferenceRequest)
        worker.timeout_s = 0.5
        worker.send(InferenceResult(np.zeros((4, 2))))
        assert worker.receive() == WorkerError(
            "the environment's process gave no answer in 0.5 s and was killed", died=True
        )
        worker.timeout_s = 60
        worker.send(reset)
        assert isinstance(worker.receive(), InferenceRequest)
    finally:
        worker.close()


def test_a_failing_policy_costs_the_culprit_only() -> None:
    culprit = episode_generator(2, 0).initial_seed()
    for policy, reason in ((FakePolicy(poison=culprit), "ArithmeticError"), (FakePolicy(nan=culprit), "NaN")):
        results = run(ReachEnv, list(range(4)), num_envs=2, policy=policy, in_process=True)
        assert [result.crashed for result in results] == [False, False, True, False]
        assert str(results[2].error).startswith("policy: ") and reason in str(results[2].error)
        # The others' random streams were rewound before they were asked again.
        undisturbed = run(ReachEnv, [0, 1, 3])
        assert outcome([result for result in results if not result.crashed]) == outcome(undisturbed)


def test_nothing_but_crashes_aborts() -> None:
    make_env = partial(ReachEnv, raising=range(100))
    with pytest.raises(EvaluationAborted, match=r"4 episodes crashed in a row.*simulated failure of seed 3"):
        run(make_env, list(range(100)), crash_limit=4)
    assert len(run(make_env, list(range(30)), crash_limit=None)) == 30


class OddEnv(ReachEnv):
    """Returns something odd at the third step of seed 1."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.change = change

    def step(self, action: Any) -> Any:
        returned = super().step(action)
        return self.change(returned) if self._seed == 1 and self._steps == 3 else returned


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: (r[0], r[1], r[2], r[4]), "env.step returned 4 values; expected (observation, reward"),
        (lambda r: None, "env.step returned a NoneType"),
        (lambda r: (r[0], float("nan"), *r[2:]), "reward is nan; expected a finite number"),
        (lambda r: (r[0], "1", *r[2:]), "reward is '1'; expected a number"),
        (lambda r: (r[0], 0.0, "False", *r[3:]), "terminated is 'False'; expected true or false"),
        (lambda r: (r[0], 0.0, False, None, r[4]), "truncated is None; expected true or false"),
        (lambda r: (*r[:4], None), "info is a NoneType; expected a mapping"),
        (lambda r: (*r[:4], {"success": "False"}), "info['success'] is 'False'; expected true or false"),
        (lambda r: (*r[:4], {"success": {"task": False}}), "info['success'] is {'task': False}; expected true"),
        (lambda r: (*r[:4], {"success": float("nan")}), "info['success'] is nan; expected true or false"),
        (lambda r: (*r[:4], {"success": np.array([True, False])}), "info['success'] is array([ True, False])"),
    ],
)
def test_odd_steps_are_crashes_and_never_successes(change: Callable[[Any], Any], says: str) -> None:
    results = {result.seed: result for result in run(partial(OddEnv, change), [0, 1])}
    assert says in str(results[1].error) and not results[1].success
    assert results[0].error is None


def test_numbers_and_numpys_values_are_steps() -> None:
    def change(r: Any) -> Any:
        return r[0], np.float32(0), np.bool_(False), np.array(0), {"success": np.float64(0.0)}

    assert outcome(run(partial(OddEnv, change), [1])) == outcome(run(ReachEnv, [1]))


def test_a_reset_without_info_is_a_crash() -> None:
    class OldEnv(ReachEnv):
        def reset(self, **options: Any) -> Any:
            observation, info = super().reset(**options)
            return observation if options["seed"] == 1 else (observation, info)

    results = {result.seed: result for result in run(OldEnv, [0, 1])}
    assert "env.reset returned a dict; expected (observation, info)" in str(results[1].error)


def test_an_environment_that_cannot_be_closed_loses_no_results() -> None:
    class StuckEnv(ReachEnv):
        def close(self) -> None:
            raise RuntimeError("the window is gone")

    with pytest.warns(UserWarning, match="closing an environment failed: RuntimeError: the window is gone"):
        assert len(run(StuckEnv, [0, 1])) == 2


def test_an_environment_without_success_says_so() -> None:
    with pytest.raises(EvaluationAborted, match="info has no 'success'"):
        run(MakeEnv("MountainCarContinuous-v0"), [0, 1, 2], policy=BlindPolicy(), crash_limit=2)


class BlindPolicy(FakePolicy):
    """One action, whatever it sees."""

    def predict_action(self, observation: object, sampler: object, generator: object) -> object:  # type: ignore[override]
        zeros = {"goal": np.zeros((1, 2, 2)), "position": np.zeros((1, 2, 2))}
        chunk = super().predict_action(zeros, FakeSampler(), generator)  # type: ignore[arg-type]
        return dataclasses.replace(chunk, actions=chunk.actions[..., :1])


def test_an_environment_that_cannot_be_made_is_a_crash_with_its_reason() -> None:
    with pytest.raises(EvaluationAborted, match=r"NameNotFound.*NoSuchEnv"):
        run(MakeEnv("NoSuchEnv-v0"), list(range(9)), crash_limit=3)


def test_interrupting_leaves_the_pool_usable() -> None:
    with EnvPool(WorkerConfig(REACH, 2), num_envs=2) as pool:
        results = run_episodes(FakePolicy(), SAMPLERS, pool, specs(range(6)), task="reach")
        next(results)
        results.close()  # type: ignore[attr-defined]
        again = list(run_episodes(FakePolicy(), SAMPLERS, pool, specs(range(6)), task="reach"))
    assert outcome(sorted(again, key=lambda result: result.key)) == outcome(run(ReachEnv, list(range(6))))


class ThreadEnv(ReachEnv):
    """Succeeds where numerical libraries are limited to one thread."""

    def step(self, action: Any) -> Any:
        return super().step(action)[0], 0.0, True, False, {"success": os.environ.get("OMP_NUM_THREADS") == "1"}


def test_workers_have_one_thread_and_leave_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    (result,) = run(ThreadEnv, [0], num_envs=1, in_process=False)
    assert result.success
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_streams_differ_by_seed_and_repeat_and_are_stable() -> None:
    seeds = {episode_generator(seed, repeat).initial_seed() for seed in range(50) for repeat in range(4)}
    assert len(seeds) == 200
    assert episode_generator(100_000, 3).initial_seed() == episode_generator(100_000, 3).initial_seed()
    assert episode_generator(0, 0).initial_seed() == 350_481_545  # what committed results were made with


def test_numpy_integers_are_seeds() -> None:
    assert episode_generator(np.int64(7), np.uint8(2)).initial_seed() == episode_generator(7, 2).initial_seed()
    (key,) = episode_keys("fake", np.array([7]))
    assert type(key.seed) is int
    assert outcome(run(ReachEnv, list(np.arange(2)))) == outcome(run(ReachEnv, [0, 1]))
    for wrong, kind in ((2.0, TypeError), ("3", TypeError), (True, TypeError), (-1, ValueError)):
        with pytest.raises(kind, match=r"seed=.*expected a non-negative integer"):
            episode_generator(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seeds", "repeats"), [([], 1), ([1, 1], 1), ([-1], 1), ([1], 0)])
def test_impossible_seeds_are_refused(seeds: list[int], repeats: int) -> None:
    with pytest.raises(ValueError, match=r"seed|repeats"):
        episode_keys("fake", seeds, repeats)
