"""A wider U-Net that computes the same function: Net2WiderNet (Chen et al. 2016, section 3.2), every channel copied.

What speculation gains depends on what the network has learned, and what a pass costs on how large it is. A shipped
policy whose channels are all copied ``times`` times has the size of the published networks and every acceptance of
its own. Copies stand side by side and the number of groups stays, so that every group norm sees the statistics that
it saw; whatever reads a copied channel divides its weight among the copies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.unet1d import ConditionalUnet1d

_RCOND = 1e-8  # smaller lets the weights grow beyond what float32 resolves, larger leaves more of a residual
_LEFT = 1e-4


@torch.no_grad()
def widened(policy: DiffusionPolicy, times: int) -> DiffusionPolicy:
    """The same policy with ``times`` as many channels in every level and in the timestep embedding.

    The functions agree at the timesteps of the policy's schedule, to float32's rounding and some 1e-5. Calibrations
    stay valid, so that the wide policy counts as loaded from the same folder.

    Raises:
        ValueError: the network is no :class:`ConditionalUnet1d`, ``times`` is below 2, or too little for the timesteps.
    """
    network: Any = policy.network
    if not isinstance(policy.network, ConditionalUnet1d) or times < 2:
        raise ValueError(f"{type(network).__name__} widened {times} times: only U-Nets can be, 2 times or more")
    sizes = {
        "channels": [times * level[0].first[0].out_channels for level in network.down],
        "timestep_dim": 2 * times * len(network.timestep_embedding.frequencies),
    }
    wide = DiffusionPolicy(replace(policy.config, network={**policy.config.network, **sizes})).to(policy.device)
    wide.observation_normalizer, wide.action_normalizer = policy.observation_normalizer, policy.action_normalizer
    made: Any = wide.network
    for name, module in network.named_modules():
        for part, value in module.named_parameters(recurse=False):
            target = getattr(made.get_submodule(name), part)
            target.copy_(_spread(module, value, target.shape, times))
    told, tells = network.timestep_embedding, made.timestep_embedding
    first = told.mlp[0].weight.double() @ _translated(policy, told.frequencies, tells.frequencies)
    tells.mlp[0].weight.copy_(first.repeat_interleave(times, dim=0))
    wide.folder = policy.folder
    return wide.eval()


def _spread(module: nn.Module, value: Tensor, size: torch.Size, times: int) -> Tensor:
    """A parameter for copied channels. Only the leading inputs of a FiLM layer are: observations are told once."""
    inputs = None if value.ndim == 1 else 0 if isinstance(module, nn.ConvTranspose1d) else 1
    for dim in range(value.ndim):
        copied = (size[dim] - value.shape[dim]) // (times - 1)
        head, rest = value.narrow(dim, 0, copied), value.narrow(dim, copied, value.shape[dim] - copied)
        head = head.repeat_interleave(times, dim)
        value = torch.cat([head / times if dim == inputs else head, rest], dim)
    return value


def _translated(policy: DiffusionPolicy, old: Tensor, new: Tensor) -> Tensor:
    """What makes the old sines and cosines of the timestep out of the wide embedding's, which has other frequencies.

    With more new ones than twice the timesteps least squares leaves next to nothing.
    """
    timesteps = torch.arange(policy.scheduler.config.num_train_timesteps, device=old.device).double()[:, None]
    was, now = (torch.cat([(timesteps * f).sin(), (timesteps * f).cos()], dim=1).cpu() for f in (old, new))
    solution = torch.linalg.lstsq(now, was, rcond=_RCOND, driver="gelsd").solution
    left = float((now.float() @ solution.float() - was).abs().max())
    if left > _LEFT:
        raise ValueError(
            f"a timestep embedding of {now.shape[1]} cannot tell {len(timesteps)} timesteps as the one of "
            f"{was.shape[1]} does ({left:.1e} left): widen more times"
        )
    return solution.T.to(old.device)
