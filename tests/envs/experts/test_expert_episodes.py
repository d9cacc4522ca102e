"""What an episode of the expert records."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pytest
from specpolicy_envs.experts import EXPERTS, load_expert
from specpolicy_envs.experts.base import Arm, EpisodeVariation, Plan, PlanFailed, Randomization
from specpolicy_envs.experts.geometry import Scene
from specpolicy_envs.experts.rollout import HOLD, Performance, perform
from specpolicy_envs.robosuite_tasks import SquareEnv


@pytest.fixture(scope="module")
def performance(square: SquareEnv) -> Performance:
    return perform(square, load_expert("square"), seed=1001)


class Riser:
    """Raises the hand for some steps, and gives up or ends."""

    name, horizon, grasps = "riser", 40, ()

    def __init__(self, steps: int, gives_up: bool) -> None:
        self.steps, self.gives_up = steps, gives_up

    def plan(
        self, scene: Scene, arms: Sequence[Arm], episode: EpisodeVariation, rng: np.random.Generator
    ) -> Mapping[int, Plan]:
        return {0: self._rise(arms[0])}

    def _rise(self, arm: Arm) -> Generator[None, None, None]:
        for _ in range(self.steps):
            arm.goal = arm.pose.raised(0.01)
            yield
        if self.gives_up:
            raise PlanFailed("nothing up there")


def test_the_same_seed_gives_the_same_bytes(square: SquareEnv, performance: Performance) -> None:
    square.reset(seed=3)
    again = perform(square, load_expert("square"), seed=1001)
    for field in fields(Performance):
        first, second = getattr(performance, field.name), getattr(again, field.name)
        if field.name == "observations":
            assert {name: values.tobytes() for name, values in first.items()} == {
                name: values.tobytes() for name, values in second.items()
            }
        else:
            assert first.tobytes() == second.tobytes() if isinstance(first, np.ndarray) else first == second


def test_executed_actions_lead_through_the_recorded_states(square: SquareEnv, performance: Performance) -> None:
    observation, _ = square.reset(seed=performance.seed)
    for t, action in enumerate(performance.executed_actions):
        assert np.array_equal(square.state(), performance.states[t]), t
        for name, values in performance.observations.items():
            assert np.array_equal(observation[name], values[t]), (t, name)
        observation, reward, *_ = square.step(action)
        assert reward == performance.rewards[t]


def test_actions_are_what_was_meant_and_differ_from_what_was_done(performance: Performance) -> None:
    difference = performance.executed_actions - performance.actions
    assert np.abs(performance.actions).max() <= 1 and np.abs(performance.executed_actions).max() <= 1
    assert (difference[:, :6] != 0).mean() > 0.9
    assert 0.01 < difference[:, :6].std() < 0.1
    assert not difference[:, 6].any()
    assert set(performance.actions[:, 6]) == {-1, 1}


def test_faults_on_purpose_are_marked(square: SquareEnv, performance: Performance) -> None:
    slipped = perform(square, load_expert("square"), seed=1001, variety=Randomization(slip=1.0))
    assert slipped.success
    assert 5 <= (~slipped.taught).sum() < 0.7 * len(slipped)
    assert slipped.taught[-HOLD:].all()
    assert perform(square, Riser(3, gives_up=False), seed=5).taught.all()


def test_it_goes_on_until_success_has_held(performance: Performance) -> None:
    assert performance.success and performance.failure is None
    assert performance.rewards[-HOLD:].all() and not performance.rewards[-HOLD - 1]
    np.testing.assert_array_equal(performance.dones, performance.rewards)


def test_a_success_that_does_not_last_is_none(performance: Performance) -> None:
    rewards = performance.rewards.copy()
    rewards[-3] = 0
    assert not replace(performance, rewards=rewards).success
    assert not replace(performance, rewards=np.ones(HOLD - 1)).success


@pytest.mark.parametrize("steps", [0, 3])
def test_a_plan_that_gives_up_is_a_failed_performance(square: SquareEnv, steps: int) -> None:
    failed = perform(square, Riser(steps, gives_up=True), seed=5)
    assert not failed.success and failed.failure == "nothing up there"
    assert len(failed) == steps and failed.actions.shape == (steps, 7) and failed.states.shape == (steps, 45)
    assert failed.observations["object"].shape == (steps, 14)
    assert failed.dones.tolist() == [0, 0, 1][-steps:] if steps else not failed.dones.size


def test_a_finished_plan_gets_some_time_and_no_more(square: SquareEnv) -> None:
    idle = perform(square, Riser(2, gives_up=False), seed=5, variety=Randomization(sigma=0))
    assert not idle.success and 10 < len(idle) < Riser.horizon
    lasting = perform(square, Riser(100, gives_up=False), seed=5, variety=Randomization(sigma=0))
    assert len(lasting) == Riser.horizon
    assert lasting.observations["robot0_eef_pos"][-1, 2] > idle.observations["robot0_eef_pos"][-1, 2] + 0.05


def test_an_unknown_task_is_told_which_are_known() -> None:
    with pytest.raises(ValueError, match="no expert for 'juggling'; there is one for square, tool_hang, transport"):
        load_expert("juggling")


@pytest.mark.parametrize("task", EXPERTS)
def test_an_expert_has_as_long_as_a_policy(task: str) -> None:
    expert = load_expert(task)
    environment = "".join(word.title() for word in task.split("_"))
    assert expert.name == task and expert.grasps
    assert expert.horizon == gym.spec(f"specpolicy/{environment}-v0").max_episode_steps
