"""A seed names an initial state: bit for bit, in any process, after anything."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from specpolicy_envs.robosuite_env import RobosuiteEnv, seeded_global_numpy
from specpolicy_envs.robosuite_tasks import SquareEnv
from specpolicy_envs.simulator import load_robosuite


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


def play(env: RobosuiteEnv, steps: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        observation, *_ = env.step(rng.uniform(-1, 1, env.task.action_dim))
    return observation


def test_a_seed_does_not_depend_on_what_was_played_before(env: RobosuiteEnv) -> None:
    first, _ = env.reset(seed=7)
    state, later = env.state(), play(env, 5)
    env.reset(seed=8)
    play(env, 12, seed=1)
    np.random.seed(123)
    again, _ = env.reset(seed=7)
    assert same(first, again)
    assert np.array_equal(state, env.state())
    assert same(later, play(env, 5))


def test_seeds_differ(square: SquareEnv) -> None:
    states = [(square.reset(seed=seed), square.state())[1] for seed in (0, 1, 2**32 - 1, 2**32, 2**40)]
    assert len({state.tobytes() for state in states}) == len(states)


def test_without_a_seed_the_stream_of_the_last_one_goes_on(square: SquareEnv) -> None:
    def stream(seed: int) -> list[bytes]:
        return [(square.reset(seed=seed if k == 0 else None), square.state())[1].tobytes() for k in range(3)]

    assert stream(7) == stream(7)
    assert len(set(stream(7) + stream(8))) == 6


def test_other_draws_from_the_global_generator_are_not_disturbed(simulator: None) -> None:
    np.random.seed(5)
    expected = np.random.random(4)
    np.random.seed(5)
    env = SquareEnv()
    env.reset(seed=1)
    env.reset()
    play(env, 2)
    assert np.array_equal(np.random.random(4), expected)


def test_the_global_generator_comes_back_after_an_error() -> None:
    np.random.seed(5)
    expected = np.random.random(2)
    np.random.seed(5)
    with pytest.raises(ZeroDivisionError), seeded_global_numpy(1):
        np.random.random()
        raise ZeroDivisionError
    assert np.array_equal(np.random.random(2), expected)


def test_a_seed_means_what_it_means_to_robosuite(env: RobosuiteEnv) -> None:
    raw = load_robosuite().make(**env.task.robosuite_arguments())
    np.random.seed(100_000)
    raw.reset()
    env.reset(seed=100_000)
    assert np.array_equal(raw.sim.get_state().flatten(), env.state())
    contacts = 0
    for action in np.random.default_rng(0).uniform(-1, 1, (25, env.task.action_dim)):
        action[2::7] -= 0.5  # down, so that the grippers meet something
        action = np.clip(action, -1, 1)
        raw.step(action)
        env.step(action)
        contacts = max(contacts, raw.sim.data.ncon)
        assert np.array_equal(raw.sim.get_state().flatten(), env.state())
    assert contacts > 10


@pytest.mark.slow
def test_spawned_workers_play_the_same_episodes(square: SquareEnv) -> None:
    envs: Any = gym.make_vec(
        "specpolicy_envs:specpolicy/Square-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
    )
    try:
        first, info = envs.reset(seed=[3, 4])
        assert not info["success"].any()
        actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 7)).astype(np.float32)
        for action in actions:
            last, reward, terminated, truncated, _ = envs.step(action)
        assert not (reward.any() or terminated.any() or truncated.any())
    finally:
        envs.close()
    for worker, seed in enumerate((3, 4)):
        observation, _ = square.reset(seed=seed)
        assert same(observation, {name: first[name][worker] for name in observation})
        for action in actions[:, worker]:
            observation, *_ = square.step(action)
        assert same(observation, {name: last[name][worker] for name in observation})
