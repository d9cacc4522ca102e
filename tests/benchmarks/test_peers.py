"""``benchmarks/peers.py``: the peers' loops make the chunks that diffusers' scheduler makes, or are left out."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import SETTINGS, PeerSampler, disagreement, peers

from specpolicy import SchedulerSampler
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


def has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


MODULES = {"LeRobot": "lerobot.policies.diffusion", "robomimic": "robomimic.models.diffusion_policy_nets"}


@pytest.fixture(scope="module", params=["unet1d", "mlp"])
def policy(request: pytest.FixtureRequest) -> DiffusionPolicy:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": [16, 32]} if request.param == "unet1d" else {"width": 32}
    scheduler = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
    if request.param == "mlp":
        scheduler["prediction_type"] = "v_prediction"
    config = PolicyConfig("square", {"object": 5}, 3, network={"name": request.param, **sizes}, scheduler=scheduler)
    return DiffusionPolicy(config).eval()


@pytest.mark.parametrize("name", list(MODULES))
def test_the_same_noises_make_the_same_chunks(name: str, policy: DiffusionPolicy) -> None:
    if not has(MODULES[name]):
        pytest.skip(f"needs {name} with its Diffusion Policy")
    made, about = peers(policy)
    mine = {label: each for label, each in made.items() if label.startswith(f"{name}'s loop")}
    assert len(mine) == len(SETTINGS) and about[name][0].isdigit()
    assert all(("our network" in label) == (policy.config.network["name"] == "mlp") for label in mine)
    cond = torch.linspace(-1, 1, 20).view(2, 10)
    for label, each in mine.items():
        assert disagreement(each, policy, cond) < 1e-4, label
        result = each(policy, torch.randn(2, *policy.event_shape), cond)
        assert result.passes.tolist() == [each.steps] * 2 and each.exact == label.endswith("DDPM-100")


def test_a_loop_of_other_work_is_seen(policy: DiffusionPolicy) -> None:
    cond = torch.zeros(1, 10)

    def loop(steps: int) -> PeerSampler:
        def chunks(cond: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(len(cond), *policy.event_shape)
            return SchedulerSampler(policy.scheduler, steps)(policy, noise, cond).sample[:, 1:]

        return PeerSampler(chunks, "DDPM", 100, True)

    assert disagreement(loop(100), policy, cond) == 0
    assert disagreement(loop(90), policy, cond) > 0.05


def test_what_is_not_installed_is_left_out_and_named(policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lerobot", "lerobot.configs.types", "robomimic", "robomimic.algo"):
        monkeypatch.setitem(sys.modules, module, None)
    made, about = peers(policy)
    assert made == {} and set(about) == set(MODULES)
    assert all(each.startswith("left out: ") for each in about.values())
