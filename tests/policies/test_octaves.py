"""Finer scales of the condition."""

from __future__ import annotations

import pytest
import torch

from specpolicy.policies.networks.embeddings import FourierFeatures
from specpolicy.policies.networks.mlp import ResidualMlp


def test_sines_and_cosines_at_doubling_frequencies_follow_the_vector() -> None:
    vector = torch.tensor([[0.5, -0.25]])
    octaves = FourierFeatures(2)
    wide = octaves(vector)
    assert wide.shape == (1, octaves.width(2)) == (1, 10)
    angles = torch.pi * torch.tensor([[0.5, 1.0, -0.25, -0.5]])
    torch.testing.assert_close(wide, torch.cat([vector, angles.sin(), angles.cos()], dim=1))


def test_none_leave_the_vector_as_it_is() -> None:
    vector = torch.randn(3, 4)
    assert FourierFeatures(0)(vector) is vector
    with pytest.raises(ValueError, match="octaves must be 0 or more"):
        FourierFeatures(-1)


def test_a_network_with_octaves_tells_close_observations_apart_better() -> None:
    """At the start of training already: the same small step of an observation changes the output more."""
    torch.manual_seed(0)
    x, timestep, cond = torch.zeros(1, 16, 2), torch.zeros(1), torch.full((1, 6), 0.3)

    def change(octaves: int) -> float:
        torch.manual_seed(0)
        network = ResidualMlp(2, 6, 16, width=64, blocks=1, embed=64, octaves=octaves)
        return float((network(x, timestep, cond + 0.005) - network(x, timestep, cond)).detach().norm())

    assert change(4) > 1.3 * change(0)
