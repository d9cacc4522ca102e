"""Read robomimic's checkpoints (``.pth``) of the algorithm ``diffusion_policy``.

Format: robomimic 0.5.0 and later, and the branches before it that have the same layout (``TrainUtils.save_model``,
``algo/diffusion_policy.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpolicy.interop.checkpoint_files import comma_list, finite, refuse, shortened, tensors_of, without_prefix
from specpolicy.interop.fields import Fields
from specpolicy.interop.foreign import (
    AffinePart,
    Findings,
    ForeignCamera,
    ForeignPolicy,
    assemble,
    describe_steps,
    read_scheduler_config,
)
from specpolicy.interop.image_encoders import read_visual_core
from specpolicy.interop.network_weights import read_unet

_GROUPS = 8
"""Of robomimic's U-Net, which is always built with its own defaults: ``algo.unet`` is not read."""

_ROTATIONS = {"rot_axis_angle": "axis_angle", "rot_euler": "euler_xyz"}


def is_robomimic(payload: Any) -> bool:
    """Tell whether an unpickled archive has the layout of robomimic's checkpoints, of whatever algorithm."""
    return isinstance(payload, Mapping) and {"model", "config", "algo_name", "shape_metadata"} <= set(payload)


def read_robomimic(path: Path, payload: Mapping[str, Any]) -> ForeignPolicy:
    """Describe a policy in terms of our format.

    Args:
        path: of the file, for messages.
        payload: what it holds.

    Raises:
        CheckpointError: another algorithm; a language, goal, depth or scan observation; a field is missing or wrong.
    """
    top = Fields(path, payload)
    algorithm = top.text("algo_name")
    if algorithm != "diffusion_policy":
        refuse(path, f"algo_name is {algorithm!r}: a policy without a diffusion chain cannot be sampled faster; "
                     "'diffusion_policy' can be read")  # fmt: skip
    config = Fields(path, _config(path, top.text("config")), "config")
    findings = Findings("robomimic diffusion_policy (.pth)")
    nets = _weights(path, payload["model"], config, findings)

    horizons = config.part("algo").part("horizon")
    n_obs_steps = horizons.integer("observation_horizon", most=1000)
    horizon = horizons.integer("prediction_horizon", most=10_000)
    n_action_steps = horizons.integer("action_horizon", most=10_000)
    network = read_unet(
        path,
        "model.policy.noise_pred_net.",
        without_prefix(nets, "policy.noise_pred_net."),
        _GROUPS,
        horizon,
    )
    stated = config.part("algo").part("unet").raw("down_dims")
    if stated is not None and list(stated) != network.config["channels"]:
        findings.assumed.append(
            f"the U-Net is what its weights show, channels {network.config['channels']}; config.algo.unet says "
            f"{list(stated)}, which robomimic does not read"
        )
    parts = _observations(path, top, config, without_prefix(nets, "policy.obs_encoder.nets.obs.obs_nets."), findings)
    action, rotations = _actions(path, top, config, findings)
    scheduler, steps = _scheduler(config, findings)
    rest = [name for name in nets if not name.startswith(("policy.noise_pred_net.", "policy.obs_encoder."))]
    if rest:
        refuse(path, f"model: weights {comma_list(rest)}, which a diffusion policy of robomimic does not have")
    return assemble(
        path,
        findings,
        network,
        task=str(Fields(path, top.raw("env_metadata", {}), "env_metadata").raw("env_name", "robomimic")),
        parts=parts,
        action=action,
        n_obs_steps=n_obs_steps,
        horizon=horizon,
        n_action_steps=n_action_steps,
        first_action=n_obs_steps - 1,
        scheduler=scheduler,
        num_inference_steps=steps,
        rotations=rotations,
    )


def _config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(path, f"config is no JSON ({shortened(str(error))})", error)
    if not isinstance(config, dict):
        refuse(path, f"config is a {type(config).__name__}; expected a mapping")
    return config


def _weights(path: Path, model: Any, config: Fields, findings: Findings) -> dict[str, Tensor]:
    """The averaged weights if there are any, as robomimic's own evaluation takes."""
    model = Fields(path, model, "model")
    raw, averaged = tensors_of(path, model.raw("nets"), "model.nets"), model.raw("ema")
    enabled = config.part("algo").part("ema").flag("enabled", averaged is not None)
    if averaged is None:
        if enabled:
            refuse(path, "model.ema is missing although config.algo.ema.enabled is true: the weights that are played "
                         "are not in this file")  # fmt: skip
        findings.found["weights"] = "model.nets (the run kept no moving average)"
        return finite(path, raw, "model.nets")
    averaged = tensors_of(path, averaged, "model.ema")
    if set(averaged) != set(raw):
        refuse(path, "model.ema does not hold the tensors of model.nets: it was saved by another moving average than "
                     "robomimic's, and which weights are played cannot be told")  # fmt: skip
    findings.found["weights"] = "model.ema, the moving average"
    return finite(path, averaged, "model.ema")


def _observations(
    path: Path, top: Fields, config: Fields, encoders: dict[str, Tensor], findings: Findings
) -> dict[str, AffinePart | ForeignCamera]:
    """Parts in the order of shape_metadata.all_shapes: sorted by name, whatever the order in config is."""
    observation = config.part("observation")
    modalities = observation.part("modalities")
    goals = [key for kind in modalities.part("goal").values for key in modalities.part("goal").names(kind, [])]
    if goals:
        refuse(path, f"config.observation.modalities.goal names {comma_list(goals)}: goal-conditioned policies are not "
                     "supported")  # fmt: skip
    obs = modalities.part("obs")
    kinds = {key: kind for kind in obs.values for key in obs.names(kind, [])}
    shapes = Fields(path, top.part("shape_metadata").raw("all_shapes"), "shape_metadata.all_shapes")
    statistics = Fields(path, top.raw("obs_normalization_stats", {}), "obs_normalization_stats")
    if config.part("train").flag("hdf5_normalize_obs", False) or statistics.values:
        without = [key for key, kind in kinds.items() if kind == "low_dim" and not statistics.has(key)]
        if without:
            refuse(path, f"{statistics.where} lacks {comma_list(without)}, although the run normalized observations "
                         "(config.train.hdf5_normalize_obs)")  # fmt: skip
    lacking = [key for key in kinds if key not in shapes.values]
    if lacking:
        refuse(path, f"{shapes.where} lacks {comma_list(lacking)}, which config.observation.modalities names")
    parts: dict[str, AffinePart | ForeignCamera] = {}
    for key in (key for key in shapes.values if key in kinds):
        kind, shape = kinds[key], shapes.integers(key)
        if "lang" in key.lower() or "lang" in kind.lower():
            refuse(path, f"observation {key!r}: language-conditioned policies are not supported")
        if kind == "low_dim":
            if len(shape) != 1:
                shapes.wrong(key, "one dimension for a low_dim observation")
            known = statistics.has(key)
            parts[key] = _statistics(statistics, key, shape[0]) if known else AffinePart.identity(shape[0])
        elif kind == "rgb":
            if len(shape) != 3:
                shapes.wrong(key, "channels, height and width")
            if statistics.has(key):
                refuse(path, f"{statistics.name(key)}: normalized images are not supported")
            encoder = observation.part("encoder").part("rgb")
            parts[key] = read_visual_core(path, key, encoder, shape, without_prefix(encoders, f"{key}."))
        else:
            refuse(path, f"observation {key!r} is of modality {kind!r}; low_dim and rgb can be read")
    if not parts:
        refuse(path, "config.observation.modalities.obs names no observation")
    findings.found["observations"] = ", ".join(
        f"{key} ({'camera' if isinstance(part, ForeignCamera) else len(part.center)})" for key, part in parts.items()
    )
    if statistics.values:
        findings.found["normalization"] = "observations by mean and standard deviation (obs_normalization_stats)"
    else:
        findings.found["normalization"] = "observations enter as they are (hdf5_normalize_obs was off)"
    return parts


def _statistics(statistics: Fields, key: str, dim: int) -> AffinePart:
    """Read the normalization of an observation: (x − offset) / scale."""
    entry = statistics.part(key)
    offset, scale = (_vector(entry, name) for name in ("offset", "scale"))
    part = AffinePart(offset, scale, torch.zeros_like(offset))
    return part.checked(statistics.file, statistics.name(key), dim)


def _vector(entry: Fields, name: str) -> Tensor:
    value = entry.raw(name)
    if isinstance(value, Tensor):
        return value.float().flatten()
    try:
        return torch.tensor(value, dtype=torch.float32).flatten()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        refuse(entry.file, f"{entry.name(name)} is missing or no list of numbers", error)


def _actions(path: Path, top: Fields, config: Fields, findings: Findings) -> tuple[AffinePart, list[dict[str, Any]]]:
    """Action keys in the order of config.train.action_keys, and which of them are 6-D rotations."""
    total = top.part("shape_metadata").integer("ac_dim", most=10_000)
    statistics = Fields(path, top.raw("action_normalization_stats", {}), "action_normalization_stats")
    if not statistics.values:
        findings.assumed.append("there are no action_normalization_stats (older layout): actions are not scaled")
        return AffinePart.identity(total), []
    train = config.part("train")
    keys = train.names("action_keys", list(statistics.values) if len(statistics.values) == 1 else ["actions"])
    described = train.part("action_config")
    vectors: list[AffinePart] = []
    rotations: list[dict[str, Any]] = []
    start = 0
    for key in keys:
        if not statistics.has(key):
            refuse(path, f"{statistics.where} lacks {key!r}, one of config.train.action_keys; actions would come out "
                         "normalized")  # fmt: skip
        scale = _vector(statistics.part(key), "scale")
        vectors.append(_statistics(statistics, key, len(scale)))
        about = described.part(key)
        if about.raw("format") == "rot_6d":
            target = about.text("convert_at_runtime", "rot_axis_angle", list(_ROTATIONS))
            if len(scale) != 6:
                refuse(path, f"{statistics.name(key)} has {len(scale)} coordinates; a rot_6d action has 6")
            rotations.append({"start": start, "to": _ROTATIONS[target]})
        start += len(scale)
    if start != total:
        refuse(path, f"{statistics.where}: {comma_list(keys)} have {start} coordinates together, shape_metadata.ac_dim "
                     f"says {total}")  # fmt: skip
    action = AffinePart(*(torch.cat([getattr(v, name) for v in vectors]) for name in ("center", "width", "base")))
    findings.found["actions"] = f"{total} coordinates ({', '.join(keys)})"
    if rotations:
        findings.found["rotations"] = "6-D rotations are turned into " + comma_list(r["to"] for r in rotations)
    return action, rotations


def _scheduler(config: Fields, findings: Findings) -> tuple[dict[str, Any], int]:
    algo = config.part("algo")
    for kind in ("ddpm", "ddim"):
        part = algo.part(kind)
        if part.flag("enabled", False):
            scheduler, train_steps = read_scheduler_config(part, findings, kind.upper(), old=True)
            steps = part.integer("num_inference_timesteps", train_steps, most=train_steps)
            describe_steps(findings, scheduler, train_steps, steps, old=True)
            return scheduler, steps
    refuse(config.file, "neither config.algo.ddpm.enabled nor config.algo.ddim.enabled is true: there is no chain")
