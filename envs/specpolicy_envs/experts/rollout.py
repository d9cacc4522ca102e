"""An expert's episode, recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specpolicy_envs.experts.base import Arm, Expert, Plan, PlanFailed, Randomization
from specpolicy_envs.experts.geometry import Scene
from specpolicy_envs.robosuite_env import RobosuiteEnv

HOLD = 10
"""Steps, the last ones, at each of which the task must be done for a performance to count as a success."""

_PATIENCE = 25  # steps that are left to a finished plan for its work to come to rest
_DOMAIN = 0xE59E27  # keeps an expert's draws apart from all others that begin at the same seed


@dataclass(frozen=True)
class Performance:
    """``T`` control steps of an expert; row ``t`` is what was there before action ``t``, and what came of it.

    Attributes:
        seed: the initial state's and the expert's.
        states: simulator states before each action, as ``RobosuiteEnv.state`` gives them, shape ``(T, n)``.
        observations: what a policy would have seen before each action, by name, shapes ``(T, dim)``.
        actions: what the expert meant to do, shape ``(T, action_dim)``, in [-1, 1]. Labels for a policy: they lead back
            from wherever a disturbance has brought the arm.
        executed_actions: what was done: the above with disturbances; played after ``env.reset(seed=seed)`` they give
            all states, bit for bit.
        taught: whether the action is an example to learn from: not while a fault is made on purpose,
            shape ``(T,)``.
        rewards: 1 where the task was done after the action, else 0, shape ``(T,)``.
        dones: 1 where the reward is 1 and at the last step, else 0, shape ``(T,)``.
        failure: why the plan was given up, None if it was not.
    """

    seed: int
    states: NDArray[np.float64]
    observations: Mapping[str, NDArray[np.float64]]
    actions: NDArray[np.float64]
    executed_actions: NDArray[np.float32]
    taught: NDArray[np.bool_]
    rewards: NDArray[np.float64]
    dones: NDArray[np.int64]
    failure: str | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def success(self) -> bool:
        """Whether the task was done at the end, and had been for :data:`HOLD` steps."""
        return len(self) >= HOLD and bool(self.rewards[-HOLD:].all())


def perform(env: RobosuiteEnv, expert: Expert, seed: int, variety: Randomization | None = None) -> Performance:
    """Let an expert play the episode that a seed names.

    It goes on until the task has been done for :data:`HOLD` steps in a row, the plan is given up, or time is over. The
    same arguments give the same episode, bit for bit.

    Args:
        env: the expert's task, unwrapped: an episode must go on after its first success.
        expert: who plays.
        seed: an integer ≥ 0; the initial state is that of ``env.reset(seed=seed)``.
        variety: how episodes differ; None for the default of :class:`Randomization`.
    """
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(np.random.SeedSequence([_DOMAIN, seed]))
    episode = (Randomization() if variety is None else variety).draw(rng, expert.grasps)
    scene = Scene(env.robosuite)
    arms = [Arm(scene, index, episode.pace, episode.sigma) for index in range(scene.arms)]
    plans = dict(expert.plan(scene, arms, episode, rng))
    states, observations, actions, executed_actions, taught = [], [], [], [], []
    rewards: list[float] = []
    failure, done_for, patience = None, 0, _PATIENCE
    while len(rewards) < expert.horizon and done_for < HOLD and patience > 0:
        try:
            _advance(plans)
        except PlanFailed as reason:
            failure = str(reason)
            break
        intended = [arm.intended() for arm in arms]
        action = np.concatenate(intended)
        executed = np.concatenate([_disturbed(a, arm.disturbance(rng)) for a, arm in zip(intended, arms, strict=True)])
        states.append(env.state())
        observations.append(observation)
        actions.append(action)
        executed_actions.append(executed)
        taught.append(not any(arm.errs for arm in arms))
        observation, reward, *_ = env.step(executed)
        rewards.append(reward)
        done_for = done_for + 1 if reward else 0
        patience -= not plans and not reward
    return Performance(
        seed=seed,
        states=np.array(states).reshape(len(rewards), env.state().size),
        observations={
            name: np.array([seen[name] for seen in observations]).reshape(len(rewards), dim)
            for name, dim in env.task.observations.items()
        },
        actions=np.array(actions).reshape(len(rewards), env.task.action_dim),
        executed_actions=np.array(executed_actions, dtype=np.float32).reshape(len(rewards), env.task.action_dim),
        taught=np.array(taught, dtype=np.bool_),
        rewards=np.array(rewards, dtype=np.float64),
        dones=np.array([reward > 0 or t == len(rewards) - 1 for t, reward in enumerate(rewards)], dtype=np.int64),
        failure=failure,
    )


def _advance(plans: dict[int, Plan]) -> None:
    """Run each plan on to its next step; drop those that have ended."""
    for index in sorted(plans):
        try:
            next(plans[index])
        except StopIteration:
            del plans[index]


def _disturbed(action: NDArray[np.float64], disturbance: NDArray[np.float64]) -> NDArray[np.float32]:
    """The gripper's command, the last entry, stays as it is. Single precision, so that a recording of it is exact."""
    return np.clip(action + np.append(disturbance, 0.0), -1.0, 1.0).astype(np.float32)
