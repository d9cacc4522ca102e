"""One seed is one episode: in an evaluation, in a control loop in lockstep, and of a client over a server."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent / "serving"))

from serving_fakes import SPEC, running, tiny_policy

from specpolicy import samplers
from specpolicy.control import ActionSpec, ControlLoop, Lockstep, PolicyRunner, SimulatedLatencyClock
from specpolicy.evaluation.compare import run_missing
from specpolicy.evaluation.comparison import Comparison, PolicyAndSamplers
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.rollout.env_worker import MakeEnv
from specpolicy.serving.batching import BatchedPolicy
from specpolicy.serving.client import Client
from specpolicy.speculative.drafters import FreeDrafter
from specpolicy.speculative.verifiers import BlockVerifier

SEED, REPEAT, STEPS = 7, 2, 10


class PoseEnv(gymnasium.Env[Any, Any]):
    """A pose that actions move and a grip that follows; remembers the actions of the latest episode."""

    played: ClassVar[list[NDArray[np.float32]]] = []

    def __init__(self) -> None:
        box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space, self.observation_space = box, gymnasium.spaces.Dict({"pose": box})

    def _seen(self) -> dict[str, Any]:
        return {"pose": self._pose.copy(), "grip": self._pose[:1] / 2}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.played.clear()
        self._pose = self.np_random.normal(size=3).astype(np.float32)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.played.append(np.array(action))
        self._pose = self._pose + np.float32(0.1) * action
        return self._seen(), 0.0, False, len(self.played) == STEPS, {"success": False}


gymnasium.register("Pose-v0", f"{__name__}:PoseEnv")


@dataclass(frozen=True)
class Tiny:
    """A policy and one sampler."""

    policy: DiffusionPolicy
    sampler: Any

    def __call__(self) -> PolicyAndSamplers:
        return PolicyAndSamplers(self.policy, {"free": self.sampler})


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    policy = tiny_policy()
    return Tiny(policy, samplers.speculative(policy.scheduler, 20, FreeDrafter(), BlockVerifier(), 6))


@pytest.fixture(scope="module")
def evaluated(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    """The actions that ``evaluate`` plays."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "weights").touch()
    comparison = Comparison(
        task="pose",
        contestants=tiny,
        make_env=MakeEnv("Pose-v0", {"disable_env_checker": True}),
        seeds=[SEED],
        repeats={"free": REPEAT + 1},
        checkpoint=str(folder / "weights"),
        num_envs=1,
        latency_calls=0,
    )
    run_missing({"pose": comparison}, {"pose": folder / "out"})  # repeats 0, 1 and 2, the last one remains
    return np.array(PoseEnv.played)


def test_a_control_loop_in_lockstep_plays_what_evaluate_plays(tiny: Tiny, evaluated: NDArray[np.float32]) -> None:
    runner = PolicyRunner(tiny.policy, tiny.sampler)
    lockstep = Lockstep(tiny.policy.config.n_action_steps)
    spec = ActionSpec((0, 1, 2))
    loop = ControlLoop(PoseEnv(), runner, lockstep, SimulatedLatencyClock(), action_spec=spec)
    loop.run(np.int64(SEED), REPEAT)  # type: ignore[arg-type]  # any integer is a seed
    np.testing.assert_array_equal(np.array(PoseEnv.played), evaluated)
    loop.run(SEED, REPEAT - 1)
    assert np.abs(np.array(PoseEnv.played) - evaluated).max() > 1e-3  # a repeat has noise of its own


def test_a_client_that_loops_over_a_server_plays_what_evaluate_plays(
    tiny: Tiny, evaluated: NDArray[np.float32]
) -> None:
    env, done = PoseEnv(), False
    with running(BatchedPolicy(tiny.policy, tiny.sampler)) as server, Client(server.url) as client:
        observation, _ = env.reset(seed=SEED)
        client.reset(SEED, REPEAT)
        while not done:
            for action in client.infer(observation).actions:
                observation, _, _, done, _ = env.step(action)
                if done:
                    break
                if len(env.played) % tiny.policy.config.n_action_steps:
                    client.observe(observation)
    assert set(SPEC.keys) == set(observation)
    np.testing.assert_array_equal(np.array(PoseEnv.played), evaluated)
