"""``benchmarks/widened.py``: more channels, the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from side_by_side import parameters
from widened import widened

from specpolicy import BlockVerifier, samplers
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.unet1d import ConditionalUnet1d

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SCHEDULER = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}


def policy_with(network: dict[str, Any]) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(PolicyConfig("square", {"object": 5}, 3, network=network, scheduler=SCHEDULER)).eval()


def outputs(policy: DiffusionPolicy, timesteps: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(timesteps), *policy.event_shape, generator=generator)
    cond = 2 * torch.rand(len(timesteps), 2 * policy.observations.dim, generator=generator) - 1
    with torch.inference_mode():
        return policy(x, timesteps, cond)


@pytest.fixture(scope="module")
def square() -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(CHECKPOINTS / "square")


@pytest.fixture(scope="module")
def wide(square: DiffusionPolicy) -> DiffusionPolicy:
    return widened(square, 4)


@pytest.mark.parametrize("times", [2, 3])
def test_a_wide_network_computes_the_same_function_at_every_timestep(times: int) -> None:
    narrow = policy_with({"name": "unet1d", "channels": [8, 16], "timestep_dim": 128, "groups": 4})
    with torch.no_grad():  # group norms that do something to each channel of their own
        for each in narrow.network.parameters():
            each.add_(0.1 * torch.randn_like(each))
    more, timesteps = widened(narrow, times), torch.arange(100)
    assert more.config.network["channels"] == [8 * times, 16 * times]
    expected, found = outputs(narrow, timesteps), outputs(more, timesteps)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_square_four_times_as_wide_is_the_standard_network_with_the_same_outputs(
    square: DiffusionPolicy, wide: DiffusionPolicy
) -> None:
    standard = ConditionalUnet1d(7, 46, (256, 512, 1024), timestep_dim=256)
    assert parameters(wide.network) == parameters(standard) == 65_878_279
    assert [each.shape for each in wide.network.parameters()] == [each.shape for each in standard.parameters()]
    timesteps = torch.tensor([0, 1, 7, 33, 66, 99])
    torch.testing.assert_close(outputs(wide, timesteps), outputs(square, timesteps), atol=1e-4, rtol=1e-4)


def test_its_calibration_serves_the_wide_policy(wide: DiffusionPolicy, square: DiffusionPolicy) -> None:
    cond = torch.zeros(1, 46)
    noise = torch.randn(1, *square.event_shape, generator=torch.Generator().manual_seed(2))
    samples = []
    for policy in (square, wide):
        sampler = samplers.calibrated(policy, 20, BlockVerifier(), 6)
        samples.append(sampler(policy, noise, cond, torch.Generator().manual_seed(3)))
    assert samples[0].passes.tolist() == samples[1].passes.tolist()
    torch.testing.assert_close(samples[1].sample, samples[0].sample, atol=1e-3, rtol=1e-3)


def test_other_networks_and_widths_are_refused(square: DiffusionPolicy) -> None:
    with pytest.raises(ValueError, match="ResidualMlp widened 4 times: only U-Nets"):
        widened(policy_with({"name": "mlp"}), 4)
    with pytest.raises(ValueError, match="2 times or more"):
        widened(square, 1)
    with pytest.raises(ValueError, match=r"embedding of 128 cannot tell 100 timesteps .* widen more times"):
        widened(square, 2)
