"""Start a policy from what others have learned.

A policy that is to continue actions under way starts from one that was not (:func:`widen_prefix`); a camera policy
from a trained encoder and from the denoiser of a policy that sees states (:func:`adopt_denoiser`).

An encoder learns within a few epochs where things are; a denoiser needs many times as many steps to learn what to do
about it. A policy that was trained on the same demonstrations from states has learned that already, at a fraction of
the cost. What it looks at is read off the camera policy's condition by a linear map, and the map is folded into the
first layers of its denoiser, which from then on is trained together with the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.mlp import ResidualMlp


def widen_prefix(init: DiffusionPolicy, policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Compute weights with which a policy that takes longer prefixes does what ``init`` does without them.

    The weights of the new columns of the condition are zero. They are the last inputs of the layers that read it.

    Args:
        init: trained, of a configuration that differs in ``max_delay`` alone.
        policy: whose shapes the weights are to have.

    Returns:
        A state dict for ``policy``.
    """
    given, state = init.state_dict(), {}
    for name, own in policy.state_dict().items():
        tensor = given.get(name, own.new_zeros(own.shape[0], 0) if own.ndim == 2 else own)
        state[name] = tensor
        if own.ndim == 2 and tensor.shape[1] < own.shape[1]:
            state[name] = torch.cat([tensor, tensor.new_zeros(len(own), own.shape[1] - tensor.shape[1])], dim=1)
    return state


def fit_linear_map(
    inputs: Float[Tensor, "n inputs"], outputs: Float[Tensor, "n outputs"]
) -> tuple[Float[Tensor, "inputs outputs"], Float[Tensor, " outputs"]]:
    """Fit ``outputs ≈ inputs · matrix + shift`` by least squares.

    Args:
        inputs: one row for each moment of the data.
        outputs: one row for each moment of the data.

    Returns:
        Matrix and shift, float32.
    """
    x, y = inputs.double(), outputs.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())  # a ridge, relative to the mean variance of the inputs
    matrix = torch.linalg.solve(gram, x.T @ y)
    return matrix.float(), (y_mean - x_mean @ matrix).float()


def fold_into_condition(
    network: ResidualMlp, matrix: Float[Tensor, "new old"], shift: Float[Tensor, " old"], steps: int
) -> dict[str, Tensor]:
    """Compute weights of a network that reads ``new`` numbers a step where ``network`` reads ``new · matrix + shift``.

    Args:
        network: reads a condition of ``steps`` times as many numbers as the matrix has columns.
        matrix: of one observation step.
        shift: of one observation step.
        steps: observation steps.

    Returns:
        A state dict for a network of the same arguments but another ``cond_dim``.

    Raises:
        ValueError: the network looks at its condition through Fourier features, which no matrix folds into.
    """
    if len(network.octaves.frequencies):
        raise ValueError("the donor's network has octaves: only a network without them can be warm-started from")
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    old = len(shift) * steps
    for layer in ("enter", "embed.0"):
        weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
        rest, condition = weight[:, :-old], weight[:, -old:].unflatten(1, (steps, len(shift)))
        state[f"{layer}.weight"] = torch.cat([rest, (condition @ matrix.T).flatten(1)], dim=1)
        state[f"{layer}.bias"] = bias + (condition @ shift).sum(dim=1)
    return state


@torch.no_grad()
def encoded_moments(
    policy: DiffusionPolicy,
    vectors: Float[Tensor, "n vectors"],
    images: Mapping[str, UInt8[Tensor, "n a b c"]],
) -> Float[Tensor, "n obs"]:
    """Encode every moment of the data once, in evaluation mode, as one normalized step of the policy's condition."""
    training = policy.training
    policy.eval()
    features = {key: policy.encoders.encode_frames(key, each.numpy(), policy.device) for key, each in images.items()}
    joined = policy.insert_features(vectors.to(policy.device), features)
    policy.train(training)
    return policy.observation_normalizer.normalize(joined)


def adopt_denoiser(
    policy: DiffusionPolicy,
    donor: DiffusionPolicy,
    moments: Float[Tensor, "n obs"],
    seen_by_donor: Float[Tensor, "n donor_obs"],
) -> None:
    """Give a camera policy the denoiser of a policy that sees states.

    Args:
        policy: has a trained encoder; its network and action normalizer are overwritten.
        donor: has the same network but for the condition, and the same horizons and noise schedule.
        moments: of the data, as :func:`encoded_moments` gives them.
        seen_by_donor: the donor's observations at these moments, joined in its order, raw units.

    Raises:
        ValueError: the networks do not fit, or are not residual MLPs.
    """
    for name in ("action_dim", "n_obs_steps", "horizon", "scheduler"):
        mine, others = getattr(policy.config, name), getattr(donor.config, name)
        if mine != others:
            raise ValueError(f"{name}: the donor's is {others}, the policy's {mine}; both must have the same")
    network: nn.Module = donor.network
    if not isinstance(network, ResidualMlp):
        raise ValueError(
            f"the donor's network is {donor.config.network['name']!r}; only 'mlp' can be warm-started from"
        )
    target = donor.observation_normalizer.normalize(seen_by_donor.to(donor.device))
    matrix, shift = fit_linear_map(moments, target.to(moments.device))
    state = fold_into_condition(network.to(moments.device), matrix, shift, policy.config.n_obs_steps)
    try:
        policy.network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"network: the donor's is {donor.config.network}, the policy's {policy.config.network}; both must have the "
            f"same sizes ({str(error).splitlines()[1].strip()})"
        ) from error
    policy.action_normalizer.load_state_dict(donor.action_normalizer.state_dict())
