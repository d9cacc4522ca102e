"""``examples/finetune_square.py``: DPPO on tiny policies: it learns, goes on where it stopped, counts rewards."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.rollout.env_worker import EnvPool, MakeEnv, WorkerConfig
from specpolicy.speculative.log_prob import chain_log_prob

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_square.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("finetune_square", EXAMPLE)
    assert spec is not None and spec.loader is not None
    sys.modules["finetune_square"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Right(gymnasium.Env[Any, Any]):
    """Rewards the first coordinate of every action, for ten ticks."""

    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-1, 1, (3,), np.float32)})
    action_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    ticks = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.ticks = 0
        return {"state": np.zeros(3, np.float32)}, {}

    def step(self, action: Any) -> Any:
        self.ticks += 1
        return {"state": np.zeros(3, np.float32)}, float(action[0]), False, self.ticks == 10, {"success": False}


gymnasium.register("Right-v0", f"{__name__}:Right")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = {"name": "mlp", "width": 32, "blocks": 1, "expansion": 1, "embed": 8, "timestep_dim": 8}
    scheduler = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"}
    config = PolicyConfig("toy", {"state": 3}, 2, 2, 8, 4, network=network, scheduler=scheduler)
    DiffusionPolicy(config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def trainer(example: ModuleType, checkpoint: Path, out: Path, **settings: Any) -> Any:
    out.mkdir(exist_ok=True)
    common: dict[str, Any] = {
        "checkpoint": str(checkpoint), "task": "pusht", "envs": 4, "episodes": 8, "steps": 8, "finetuned": 5,
        "in_process": True, "evaluate_every": 0, "actor_rate": 2e-3, "kl": 1e9, "clip": 0.1,
    }  # fmt: skip
    made = example.Trainer(example.Settings(**{**common, **settings}), out)
    made.worker = WorkerConfig(MakeEnv("Right-v0"), 2)
    return made


def test_reinforced_actions_become_more_likely(example: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    many = {"envs": 32, "episodes": 32, "evaluation_episodes": 32, "minibatch": 16, "actor_rate": 5e-3}
    made = trainer(example, checkpoint, tmp_path / "run", iterations=6, evaluate_every=6, **many)
    made.worker = WorkerConfig(MakeEnv("Right-v0"), 2, max_ticks=4)
    made.run()
    first, last = made.curve[0], made.curve[-1]
    assert last["evaluation_return"] > first["evaluation_return"] + 4 * first["evaluation_error"]
    assert last["training_nfe"] < made.settings.steps and 0 < last["clipped"] < 1
    assert json.loads((tmp_path / "run" / "curve.json").read_text())["curve"] == made.curve
    tuned = DiffusionPolicy.from_pretrained(tmp_path / "run" / "policy")
    before = DiffusionPolicy.from_pretrained(checkpoint)
    assert not torch.equal(next(tuned.network.parameters()), next(before.network.parameters()))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    example: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    whole = trainer(example, checkpoint, tmp_path / "whole", iterations=3, episodes=4)
    whole.run()
    trainer(example, checkpoint, tmp_path / "parts", iterations=2, episodes=4).run()
    again = trainer(example, checkpoint, tmp_path / "parts", iterations=3, episodes=4)
    assert again.iteration == 2
    again.run()
    names = ("iteration", "training_return", "critic_loss", "kl")
    assert [[line[name] for name in names] for line in again.curve] == [
        [line[name] for name in names] for line in whole.curve
    ]
    with pytest.raises(SystemExit, match=r"made with other settings \(clip\)"):
        trainer(example, checkpoint, tmp_path / "parts", episodes=4, clip=0.3)


@pytest.mark.parametrize("sampler", ["speculative", "sequential"])
def test_what_is_recorded_is_of_the_weights_that_sampled(
    example: ModuleType, checkpoint: Path, tmp_path: Path, sampler: str
) -> None:
    made = trainer(example, checkpoint, tmp_path / "run", iterations=2, episodes=4, sampler=sampler)
    made.run()  # weights have changed since the network was first asked
    with EnvPool(made.worker, 2, in_process=True) as pool:
        drawn = example.make_sampler(made.settings, made.exploring)
        episodes = list(example.play(made.policy, drawn, made.exploring, pool, range(3), 0))
    assert len(episodes) == 3
    for episode in episodes:
        assert len(episode.cond) == 3, "ten ticks in chunks of four"
        assert float(episode.rewards.sum()) == pytest.approx(episode.trace.return_, abs=1e-5)
        ticks = [row.reward for row in episode.trace.ticks]
        assert episode.rewards.tolist() == pytest.approx([sum(ticks[:4]), sum(ticks[4:8]), sum(ticks[8:])], abs=1e-5)
        with torch.no_grad():
            chain, cond = torch.stack(episode.chain, 1), torch.stack(episode.cond)
            fresh = chain_log_prob(made.exploring, made.policy, chain, cond).transitions
        torch.testing.assert_close(torch.stack(episode.log_prob, 1), fresh, atol=1e-3, rtol=1e-5)


def test_advantages_are_the_discounted_sums_of_errors(example: ModuleType) -> None:
    rewards, values = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, -1.0, 1.5])
    errors = [1 + 0.9 * -1.0 - 0.5, 0 + 0.9 * 1.5 + 1.0, 2 - 1.5]
    found = example.advantages(rewards, values, 0.9, 0.8)
    assert found.tolist() == pytest.approx([errors[0] + 0.72 * errors[1] + 0.72**2 * errors[2],
                                            errors[1] + 0.72 * errors[2], errors[2]])  # fmt: skip
