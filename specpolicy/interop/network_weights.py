"""Map the weights of robomimic's, diffusion_policy's and LeRobot's networks to ours.

All three have the same FiLM-conditioned U-Net under different names; diffusion_policy has a transformer, too. Shapes
are read off the weights, since configurations are sometimes not what was built: robomimic ignores its ``algo.unet``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpolicy.interop.checkpoint_files import comma_list, refuse

HEAD_GROUPS = 8
"""Groups of the last group norm in all three packages, whatever their ``n_groups`` says."""


@dataclass(frozen=True)
class NetworkWeights:
    """A network in our terms.

    Attributes:
        config: ``{"name": ..., **arguments}`` for :func:`~specpolicy.policies.networks.build_network`.
        weights: its state dict.
        action_dim: width of the trajectory that it denoises.
        cond_dim: length of the condition.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    action_dim: int
    cond_dim: int


class _Taken:
    """A state dict whose tensors are taken out by name with the expected shape."""

    def __init__(self, file: Path, field: str, state: Mapping[str, Tensor]) -> None:
        self.file, self.field, self.rest = file, field, dict(state)

    def name(self, key: str) -> str:
        return f"{self.field}{key}"

    def shape(self, key: str, dims: int) -> tuple[int, ...]:
        if key not in self.rest:
            refuse(self.file, f"{self.name(key)} is missing; weights are incomplete or of another network")
        shape = tuple(self.rest[key].shape)
        if len(shape) != dims or 0 in shape:
            refuse(self.file, f"{self.name(key)} has shape {shape}; expected {dims} dimensions")
        return shape

    def take(self, key: str, *shape: int) -> Tensor:
        if self.shape(key, len(shape)) != shape:
            refuse(self.file, f"{self.name(key)} has shape {tuple(self.rest[key].shape)}; expected {shape}")
        return self.rest.pop(key)

    def linear(self, key: str, ours: str, into: dict[str, Tensor], *shape: int) -> None:
        """Take weight and bias of a linear layer, a convolution or a norm."""
        into[f"{ours}.weight"] = self.take(f"{key}.weight", *shape)
        bias = shape[0]
        into[f"{ours}.bias"] = self.take(f"{key}.bias", bias)

    def finish(self) -> None:
        """Refuse what nobody asked for."""
        if self.rest:
            names = comma_list(self.name(key) for key in self.rest)
            refuse(self.file, f"{names}: weights that this kind of network does not have; it is another network")


def read_unet(file: Path, field: str, state: Mapping[str, Tensor], groups: int, horizon: int) -> NetworkWeights:
    """Map a conditional 1-D U-Net.

    Args:
        file: where it comes from.
        field: what its names begin with there, for messages.
        state: its tensors, the prefix dropped.
        groups: of its group norms, but for the last.
        horizon: actions in a chunk.

    Raises:
        CheckpointError: weights are missing, left over, or of shapes that do not belong together; it takes local
            conditions; or the chunk does not divide as often as the network halves it.
    """
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}  # torch.compile's wrapper
    local = [name for name in state if name.startswith("local_cond_encoder.")]
    if local:
        refuse(file, f"{field}{local[0]}: observations as a local condition (obs_as_local_cond) are not supported; "
                     "policies with a global condition or inpainted observations are")  # fmt: skip
    taken = _Taken(file, field, state)
    levels = _count(state, r"down_modules\.(\d{1,2})\.")
    if not levels:
        refuse(file, f"{field}down_modules is missing; expected the weights of a conditional U-Net")
    flat = {name: _flat_name(name) for name in state}  # LeRobot's names without the others' containers
    if len(set(flat.values())) < len(flat):
        refuse(file, f"{field}: the same weights under two names")
    taken.rest = {flat[name]: tensor for name, tensor in state.items()}
    original = {short: name for name, short in flat.items()}
    taken.name = lambda key: f"{field}{original.get(key, key)}"  # type: ignore[method-assign]

    timestep_dim = taken.shape("diffusion_step_encoder.3.weight", 2)[0]
    channels = [taken.shape(f"down_modules.{i}.0.conv1.0.weight", 3)[0] for i in range(levels)]
    _, action_dim, kernel = taken.shape("down_modules.0.0.conv1.0.weight", 3)
    embed = taken.shape("down_modules.0.0.cond_encoder.1.weight", 2)[1]
    if embed < timestep_dim:
        refuse(file, f"{taken.name('down_modules.0.0.cond_encoder.1.weight')} has {embed} columns, fewer than the "
                     f"timestep embedding's {timestep_dim}")  # fmt: skip
    if kernel % 2 == 0 or timestep_dim % 2 or timestep_dim < 4:
        refuse(file, f"{field[:-1]}: kernel size {kernel} and timestep embedding {timestep_dim} do not belong to this "
                     "network; expected an odd and an even number")  # fmt: skip
    wrong = [c for c in channels if c % groups] or [c for c in channels[:1] if c % HEAD_GROUPS]
    if wrong:
        refuse(file, f"{field[:-1]} has {channels} channels, which n_groups={groups} (and {HEAD_GROUPS} in the head) "
                     "must divide; the configuration does not fit the weights")  # fmt: skip
    if horizon % 2 ** (levels - 1):
        refuse(file, f"the horizon is {horizon}, which {levels} levels of {field[:-1]} cannot halve "
                     f"{levels - 1} times")  # fmt: skip

    ours: dict[str, Tensor] = {}
    taken.linear("diffusion_step_encoder.1", "timestep_embedding.mlp.0", ours, 4 * timestep_dim, timestep_dim)
    taken.linear("diffusion_step_encoder.3", "timestep_embedding.mlp.2", ours, timestep_dim, 4 * timestep_dim)

    def block(theirs: str, name: str, wide_in: int, wide_out: int) -> None:
        for number, part, width in (("conv1", "first", wide_in), ("conv2", "second", wide_out)):
            taken.linear(f"{theirs}.{number}.0", f"{name}.{part}.0", ours, wide_out, width, kernel)
            taken.linear(f"{theirs}.{number}.1", f"{name}.{part}.1", ours, wide_out)
        rows = taken.shape(f"{theirs}.cond_encoder.1.weight", 2)[0]
        film: dict[str, Tensor] = {}
        taken.linear(f"{theirs}.cond_encoder.1", "film", film, rows if rows == wide_out else 2 * wide_out, embed)
        if rows == wide_out:  # a bias alone: the same as a scale of one
            film["film.weight"] = torch.cat([torch.zeros_like(film["film.weight"]), film["film.weight"]])
            film["film.bias"] = torch.cat([torch.ones_like(film["film.bias"]), film["film.bias"]])
        ours.update({f"{name}.{key}": tensor for key, tensor in film.items()})
        if wide_in != wide_out:
            taken.linear(f"{theirs}.residual_conv", f"{name}.skip", ours, wide_out, wide_in, 1)

    widths = [action_dim, *channels]
    for i in range(levels):
        block(f"down_modules.{i}.0", f"down.{i}.0", widths[i], widths[i + 1])
        block(f"down_modules.{i}.1", f"down.{i}.1", widths[i + 1], widths[i + 1])
        if i < levels - 1:
            taken.linear(f"down_modules.{i}.2", f"downsample.{i}", ours, channels[i], channels[i], 3)
    for i in range(2):
        block(f"mid_modules.{i}", f"middle.{i}", channels[-1], channels[-1])
    for i, level in enumerate(reversed(range(1, levels))):
        block(f"up_modules.{i}.0", f"up.{i}.0", 2 * channels[level], channels[level - 1])
        block(f"up_modules.{i}.1", f"up.{i}.1", channels[level - 1], channels[level - 1])
        taken.linear(f"up_modules.{i}.2", f"upsample.{i}", ours, channels[level - 1], channels[level - 1], 4)
    taken.linear("final_conv.0.block.0", "head.0.0", ours, channels[0], channels[0], kernel)
    taken.linear("final_conv.0.block.1", "head.0.1", ours, channels[0])
    taken.linear("final_conv.1", "head.1", ours, action_dim, channels[0], 1)
    taken.finish()
    config: dict[str, Any] = {
        "name": "unet1d",
        "channels": channels,
        "timestep_dim": timestep_dim,
        "kernel": kernel,
        "groups": groups,
    }
    if groups != HEAD_GROUPS:
        config["head_groups"] = HEAD_GROUPS
    return NetworkWeights(config, ours, action_dim, embed - timestep_dim)


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    """Tell how many numbered modules there are, by the largest number."""
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def _flat_name(name: str) -> str:
    """Drop the containers that robomimic and diffusion_policy have around the layers of a residual block."""
    name = re.sub(r"\.blocks\.([01])\.block\.", lambda m: f".conv{int(m[1]) + 1}.", name)
    name = re.sub(r"\.conv([12])\.block\.", r".conv\1.", name)
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.conv\.", r"\1.", name)


def read_transformer(file: Path, field: str, state: Mapping[str, Tensor], heads: int) -> tuple[NetworkWeights, int]:
    """Map diffusion_policy's transformer with the timestep as a condition.

    Args:
        file: as in :func:`read_unet`.
        field: as in :func:`read_unet`.
        state: as in :func:`read_unet`.
        heads: of its attention, which the weights do not show.

    Returns:
        The network, and the number of actions in a chunk.

    Raises:
        CheckpointError: weights are missing, left over, or of shapes that do not belong together; or the timestep is
            one of the tokens that are denoised.
    """
    taken = _Taken(file, field, {k: v for k, v in state.items() if not k.endswith("_dummy_variable")})
    if "time_emb.weight" in state or "cond_pos_emb" not in state:
        refuse(file, f"{field[:-1]}: a transformer with the timestep among its tokens (time_as_cond: False) is not "
                     "supported; those with time_as_cond: True are")  # fmt: skip
    causal = "mask" in state
    _, horizon, width = taken.shape("pos_emb", 3)
    memory_tokens = taken.shape("cond_pos_emb", 3)[1]
    action_dim = taken.shape("input_emb.weight", 2)[1]
    steps = memory_tokens - 1
    if heads < 1 or width % heads or width % 2 or width < 4:
        refuse(file, f"{field[:-1]} has tokens of width {width}, which n_head={heads} must divide")
    seen = taken.shape("cond_obs_emb.weight", 2)[1] if steps else 0
    ours: dict[str, Tensor] = {
        "action_position": taken.take("pos_emb", 1, horizon, width),
        "memory_position": taken.take("cond_pos_emb", 1, memory_tokens, width),
    }
    masked = "memory_mask" in state
    if causal:
        _check_mask(taken, "mask", horizon, horizon, 0)
    if masked:
        _check_mask(taken, "memory_mask", horizon, memory_tokens, 1)
    taken.linear("input_emb", "enter_action", ours, width, action_dim)
    if steps:
        taken.linear("cond_obs_emb", "enter_observation", ours, width, seen)
    encoder_layers = _count(state, r"encoder\.layers\.(\d{1,2})\.")
    if not encoder_layers:
        taken.linear("encoder.0", "memory.0", ours, 4 * width, width)
        taken.linear("encoder.2", "memory.2", ours, width, 4 * width)
    for i in range(encoder_layers):
        theirs, name = f"encoder.layers.{i}", f"memory.{i}"
        _attention(taken, f"{theirs}.self_attn", f"{name}.attention", ours, width)
        _feed_forward(taken, theirs, name, ours, width)
        taken.linear(f"{theirs}.norm1", f"{name}.norm_self", ours, width)
        taken.linear(f"{theirs}.norm2", f"{name}.norm_wide", ours, width)
    layers = _count(state, r"decoder\.layers\.(\d{1,3})\.")
    for i in range(layers):
        theirs, name = f"decoder.layers.{i}", f"blocks.{i}"
        _attention(taken, f"{theirs}.self_attn", f"{name}.attention", ours, width)
        _attention(taken, f"{theirs}.multihead_attn", f"{name}.cross", ours, width)
        _feed_forward(taken, theirs, name, ours, width)
        for number, norm in enumerate(("norm_self", "norm_cross", "norm_wide"), start=1):
            taken.linear(f"{theirs}.norm{number}", f"{name}.{norm}", ours, width)
    taken.linear("ln_f", "leave.0", ours, width)
    taken.linear("head", "leave.1", ours, action_dim, width)
    taken.finish()
    config = {
        "name": "transformer",
        "observation_steps": steps,
        "width": width,
        "layers": layers,
        "heads": heads,
        "causal": causal,
        "timestep_mlp": False,
        "memory_mask": masked,
        "encoder_layers": encoder_layers,
    }
    return NetworkWeights(config, ours, action_dim, steps * seen), horizon


def _check_mask(taken: _Taken, key: str, rows: int, columns: int, ahead: int) -> None:
    """A causal mask is part of the weights; one of another shape or content would be another network."""
    mask = taken.take(key, rows, columns)
    sees = torch.arange(rows)[:, None] >= torch.arange(columns)[None] - ahead
    if not torch.equal(mask > -1e30, sees):
        refuse(taken.file, f"{taken.name(key)} is not the mask of a causal transformer; it is another network")


def _attention(taken: _Taken, theirs: str, name: str, into: dict[str, Tensor], width: int) -> None:
    """Query, key and value lie in one matrix, in this order."""
    weight = taken.take(f"{theirs}.in_proj_weight", 3 * width, width).chunk(3)
    bias = taken.take(f"{theirs}.in_proj_bias", 3 * width).chunk(3)
    for part, (matrix, vector) in zip(("query", "key", "value"), zip(weight, bias, strict=True), strict=True):
        into[f"{name}.{part}.weight"], into[f"{name}.{part}.bias"] = matrix.contiguous(), vector.contiguous()
    taken.linear(f"{theirs}.out_proj", f"{name}.out", into, width, width)


def _feed_forward(taken: _Taken, theirs: str, name: str, into: dict[str, Tensor], width: int) -> None:
    taken.linear(f"{theirs}.linear1", f"{name}.widen", into, 4 * width, width)
    taken.linear(f"{theirs}.linear2", f"{name}.narrow", into, width, 4 * width)
