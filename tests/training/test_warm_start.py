"""A camera policy that begins as the state policy whose observations can be read off its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.mlp import ResidualMlp
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.training.warm_start import adopt_denoiser, encoded_moments, fit_linear_map, fold_into_condition

NETWORK = {"name": "mlp", "width": 32, "blocks": 2, "embed": 16, "timestep_dim": 8}
SCHEDULER = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"}


def state_policy(**changes: Any) -> DiffusionPolicy:
    torch.manual_seed(1)
    config: dict[str, Any] = {
        "task": "toy", "observations": {"eef": 2, "dot": 3}, "action_dim": 4, "network": NETWORK,
        "scheduler": SCHEDULER,
    }  # fmt: skip
    policy = DiffusionPolicy(PolicyConfig(**(config | changes))).eval()
    policy.observation_normalizer = MinMaxNormalizer(
        torch.tensor([0.0, 0, -5, -5, -5]), torch.tensor([1.0, 2, 5, 6, 7])
    )
    policy.action_normalizer = MinMaxNormalizer(-2 * torch.ones(4), 3 * torch.ones(4))
    return policy


def camera_policy(**changes: Any) -> DiffusionPolicy:
    torch.manual_seed(2)
    camera = {"shape": [3, 24, 24], "backbone": "narrow", "keypoints": 8, "features": 12}
    config: dict[str, Any] = {
        "task": "toy", "observations": {"front": 12, "eef": 2}, "action_dim": 4, "network": NETWORK,
        "scheduler": SCHEDULER, "cameras": {"front": camera},
    }  # fmt: skip
    policy = DiffusionPolicy(PolicyConfig(**(config | changes))).eval()
    low, high = -torch.ones(14), torch.ones(14)
    low[12:], high[12:] = 0.0, torch.tensor([1.0, 2.0])
    policy.observation_normalizer = MinMaxNormalizer(low, high)
    return policy


def test_a_linear_map_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, shift = torch.randn(6, 3, generator=generator), torch.randn(3, generator=generator)
    inputs = torch.randn(200, 6, generator=generator) + 5
    found, moved = fit_linear_map(inputs, inputs @ matrix + shift)
    torch.testing.assert_close(found, matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved, shift, rtol=1e-3, atol=1e-3)
    constant, _ = fit_linear_map(torch.cat([inputs, torch.ones(200, 1)], dim=1), inputs @ matrix)  # a dead feature
    assert constant[-1].abs().max() < 1e-6


def test_a_folded_network_answers_as_the_other_one_would() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = ResidualMlp(4, 2 * 5, 16, **_arguments()), ResidualMlp(4, 2 * 7, 16, **_arguments())
    matrix, shift = torch.randn(7, 5, generator=generator), torch.randn(5, generator=generator)
    new.load_state_dict(fold_into_condition(old, matrix, shift, 2))
    x, timestep = torch.randn(3, 16, 4, generator=generator), torch.tensor([0, 5, 19])
    cond = torch.randn(3, 2, 7, generator=generator)
    torch.testing.assert_close(
        new(x, timestep, cond.flatten(1)), old(x, timestep, (cond @ matrix + shift).flatten(1)), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="octaves"):
        fold_into_condition(ResidualMlp(4, 10, 16, octaves=2, **_arguments()), matrix, shift, 2)


def _arguments() -> dict[str, Any]:
    return {name: value for name, value in NETWORK.items() if name != "name"}


def test_the_policy_begins_as_its_donor() -> None:
    policy, donor, generator = camera_policy(), state_policy(), torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 24, 24, 3), generator=generator, dtype=torch.uint8)
    eef = torch.rand(300, 2, generator=generator)
    moments = encoded_moments(policy, eef, {"front": images})
    dot = moments[:, :12] @ torch.randn(12, 3, generator=generator)  # what the features tell exactly
    adopt_denoiser(policy, donor, moments, torch.cat([eef, dot], dim=1))
    x, timestep = torch.randn(10, 16, 4, generator=generator), torch.full((10,), 7)
    history = {"front": images[:20].view(10, 2, 24, 24, 3).numpy(), "eef": eef[:20].view(10, 2, 2).numpy()}
    known = {"eef": history["eef"], "dot": dot[:20].view(10, 2, 3).numpy()}
    with torch.inference_mode():
        mine, its = policy(x, timestep, policy.encode(history)), donor(x, timestep, donor.encode(known))
    torch.testing.assert_close(mine, its, rtol=1e-3, atol=2e-3)
    assert torch.equal(policy.action_normalizer.low, donor.action_normalizer.low)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"horizon": 8, "n_action_steps": 4}, "horizon: the donor's is 8, the policy's 16"),
        ({"network": NETWORK | {"width": 16}}, "network: the donor's is"),
    ],
)
def test_donors_that_do_not_fit_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        adopt_denoiser(camera_policy(), state_policy(**change), torch.randn(50, 14), torch.randn(50, 5))
    unet = {"name": "unet1d", "channels": [8], "timestep_dim": 8}
    with pytest.raises(ValueError, match="only 'mlp' can be warm-started from"):
        adopt_denoiser(camera_policy(network=unet), state_policy(network=unet), torch.zeros(5, 14), torch.zeros(5, 5))


def test_training_goes_on_from_a_donor(tmp_path: Path) -> None:
    from test_camera_training import SETTINGS, config, write_file

    from specpolicy.interop.loading import load_policy
    from specpolicy.training.train import train_policy

    path = write_file(tmp_path / "d.hdf5")
    first = train_policy(config(), path, SETTINGS, tmp_path / "first", validation_demos=1, auxiliary={"dot": 1.0})
    shape = first.config
    states = PolicyConfig("toy", {"eef": 2, "dot": 2}, 2, 2, 4, 2, shape.network, shape.scheduler)
    donor = train_policy(states, path, SETTINGS, tmp_path / "donor", validation_demos=1)
    arguments: dict[str, Any] = {
        "validation_demos": 1, "auxiliary": {"dot": 1.0}, "init": load_policy(tmp_path / "first"),
        "donor": load_policy(tmp_path / "donor"),
    }  # fmt: skip
    trained = train_policy(shape, path, SETTINGS, tmp_path / "second", **arguments)
    kept = trained.network.get_parameter("leave.2.weight") - donor.network.get_parameter("leave.2.weight")
    other = first.network.get_parameter("leave.2.weight") - donor.network.get_parameter("leave.2.weight")
    assert kept.abs().mean() < 0.5 * other.abs().mean()
    with pytest.raises(ValueError, match="give init, too"):
        train_policy(shape, path, SETTINGS, tmp_path / "third", **(arguments | {"init": None}))
    with pytest.raises(ValueError, match="init is a policy of another configuration"):
        train_policy(config(horizon=6), path, SETTINGS, tmp_path / "third", **arguments)
