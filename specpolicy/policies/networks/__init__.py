"""Denoising networks, by the name that a policy's configuration uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from specpolicy.policies.networks.condition_tables import ConditionTables as ConditionTables
from specpolicy.policies.networks.condition_tables import SeparableNetwork as SeparableNetwork
from specpolicy.policies.networks.mlp import ResidualMlp as ResidualMlp
from specpolicy.policies.networks.transformer import TransformerDenoiser as TransformerDenoiser
from specpolicy.policies.networks.unet1d import ConditionalUnet1d as ConditionalUnet1d

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": ResidualMlp,
    "transformer": TransformerDenoiser,
    "unet1d": ConditionalUnet1d,
}


def build_network(
    config: dict[str, Any], action_dim: int, cond_dim: int, horizon: int, prefix_dim: int = 0
) -> nn.Module:
    """Build the network that ``config`` names.

    Args:
        config: ``{"name": one of NETWORKS, **its arguments}``.
        action_dim: coordinates of one action.
        cond_dim: length of the condition: the flattened observation history, then the prefix.
        horizon: actions in a chunk.
        prefix_dim: length of the prefix; see :class:`~specpolicy.policies.prefix.PrefixLayout`.

    Raises:
        ValueError: the name is unknown (the message lists the known ones), or a chunk does not fit the network.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {sorted(NETWORKS)}")
    return NETWORKS[name](action_dim=action_dim, cond_dim=cond_dim, horizon=horizon, prefix_dim=prefix_dim, **arguments)
