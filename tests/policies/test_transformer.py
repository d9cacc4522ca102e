"""The transformer denoiser: actions as tokens, the observation as a memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specpolicy import FreeDrafter, ReverseProcess, SpeculativeSampler
from specpolicy.config import compose, to_container
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.transformer import TransformerDenoiser

SMALL: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2}


def network(**changes: Any) -> TransformerDenoiser:
    torch.manual_seed(0)
    made = TransformerDenoiser(action_dim=3, cond_dim=10, horizon=8, **(SMALL | changes)).eval()
    for parameter in made.parameters():  # initial weights are too small for a token to notice another
        parameter.data.mul_(5)
    return made


def question() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 8, 3, generator=generator), torch.tensor([3, 70]), torch.randn(2, 10, generator=generator)


def test_it_is_differentiable_everywhere_and_checks_the_shape() -> None:
    made, (x, timestep, cond) = network(), question()
    out = made(x, timestep, cond)
    assert out.shape == x.shape
    out.square().sum().backward()
    dead = [name for name, each in made.named_parameters() if each.grad is None or not each.grad.any()]
    # a softmax does not change if all its scores grow alike
    assert [name for name in dead if not name.endswith("key.bias")] == []
    with pytest.raises(ValueError, match=r"built for \(8, 3\)"):
        made(torch.randn(2, 16, 3), timestep, cond)


def test_every_part_of_the_question_matters_and_rows_do_not_meet() -> None:
    made, (x, timestep, cond) = network(), question()
    out = made(x, timestep, cond)
    for changed in ((x + 1, timestep, cond), (x, timestep + 7, cond), (x, timestep, cond + 1)):
        assert not torch.allclose(made(*changed), out, atol=1e-4)
    torch.testing.assert_close(made(x[1:], timestep[1:], cond[1:]), out[1:])
    flipped = made(x.flip(1), timestep, cond).flip(1)
    assert not torch.allclose(flipped, out, atol=1e-4), "positions are learned, so the order of actions matters"


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_network_does_not_look_ahead(causal: bool) -> None:
    made, (x, timestep, cond) = network(causal=causal), question()
    later = x.clone()
    later[:, 5] += 1
    change = (made(later, timestep, cond) - made(x, timestep, cond)).abs().amax((0, 2))
    assert (change[5:] > 1e-5).all()
    assert bool((change[:5] < 1e-7).all()) == causal


def test_dropout_is_for_training_alone() -> None:
    made, asked = network(dropout=0.5), question()
    torch.testing.assert_close(made(*asked), made(*asked), rtol=0, atol=0)
    made.train()
    assert not torch.allclose(made(*asked), made(*asked))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"observation_steps": 3}, "does not divide into observation_steps=3"),
        ({"heads": 3}, "that heads divide"),
        ({"layers": 0}, "at least one layer"),
    ],
)
def test_shapes_that_do_not_fit(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        network(**wrong)


def test_the_preset_is_small_and_knows_the_observation_steps() -> None:
    cfg = compose("train", ["task=square", "policy=transformer", "policy.n_obs_steps=3"])
    chosen = to_container(cfg.policy)
    assert chosen["network"]["observation_steps"] == chosen["n_obs_steps"] == 3
    task = to_container(cfg.task)
    config = PolicyConfig("square", task["observations"], task["action_dim"], **chosen)
    with torch.device("meta"):
        made = DiffusionPolicy(config).network
    assert sum(each.numel() for each in made.parameters()) == pytest.approx(4.2e6, rel=0.02)


def test_a_policy_round_trip_through_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = DiffusionPolicy(
        PolicyConfig(
            task="square",
            observations={"object": 3, "eef": 2},
            action_dim=4,
            network={"name": "transformer", **SMALL},
            scheduler={"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True},
        )
    ).eval()
    policy.save_pretrained(tmp_path)
    back = DiffusionPolicy.from_pretrained(tmp_path)
    assert isinstance(back.network, TransformerDenoiser) and back.config == policy.config
    rng = np.random.default_rng(0)
    observation = {"object": rng.normal(size=(2, 2, 3)), "eef": rng.normal(size=(2, 2, 2))}
    sampler = SpeculativeSampler(ReverseProcess.from_scheduler(policy.scheduler, 20), FreeDrafter(), window=8)
    first, second = (
        each.predict_action(observation, sampler, torch.Generator().manual_seed(0)) for each in (policy, back)
    )
    np.testing.assert_array_equal(first.actions, second.actions)
