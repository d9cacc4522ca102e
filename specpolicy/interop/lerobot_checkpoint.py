"""Read the folders in which LeRobot saves a diffusion policy, of all generations of its format.

=====  ===========================  ==================================================================================
name   written by                   how it is told
=====  ===========================  ==================================================================================
S0     2024 to January 2025         ``input_shapes`` in config.json, no ``type``; statistics are buffers of the weights
S1     0.1.0 to 0.3.3               ``input_features``; statistics are buffers
S2     0.4.0 to 0.5.1               processor files beside the weights
S3     0.6                          the same, with ``pretrained_revision`` or ``gradient_checkpointing``
=====  ===========================  ==================================================================================

Every file states its values; a key that is missing gets the default of its own time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpolicy.interop.checkpoint_files import (
    comma_list,
    file_within,
    finite,
    read_json,
    read_safetensors,
    refuse,
    without_prefix,
)
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
from specpolicy.interop.image_encoders import RESNET_FEATURES, read_lerobot_encoder
from specpolicy.interop.network_weights import read_unet

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"

_MODES = ("IDENTITY", "MIN_MAX", "MEAN_STD", "QUANTILES", "QUANTILE10")
_BEFORE_0_6 = {"horizon": 16, "n_action_steps": 8, "n_obs_steps": 2, "n_groups": 8}

Normalization = Callable[[str, int], AffinePart]
"""Normalization of an input by its key and number of coordinates."""


@dataclass(frozen=True)
class _Feature:
    """One input or output: its kind (STATE, VISUAL, ENV, ACTION) and shape."""

    kind: str
    shape: tuple[int, ...]


def is_lerobot(folder: Path) -> bool:
    """Tell whether a folder has the layout of LeRobot's policies, of whatever type."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_lerobot(folder: Path) -> ForeignPolicy:
    """Describe a policy in terms of our format.

    Args:
        folder: with config.json and model.safetensors (``…/pretrained_model`` in a training run).

    Raises:
        CheckpointError: another type of policy; statistics are missing or not finite; a processor that is not known;
            a file is missing, damaged or outside the folder.
    """
    file = folder / CONFIG
    config = Fields(file, read_json(file))
    generation = _generation(folder, config)
    findings = Findings(f"LeRobot diffusion policy, format {generation}")
    inputs, action = _features(config, generation)
    if config.flag("use_peft", False):
        refuse(file, "use_peft is true: adapters have to be merged into the weights first, with LeRobot")
    weights = finite(folder / WEIGHTS, _without_statistics(state := read_safetensors(folder / WEIGHTS)))

    n_obs_steps = config.integer("n_obs_steps", _BEFORE_0_6["n_obs_steps"], most=1000)
    horizon = config.integer("horizon", _BEFORE_0_6["horizon"], most=10_000)
    n_action_steps = config.integer("n_action_steps", _BEFORE_0_6["n_action_steps"], most=10_000)
    unet = without_prefix(weights, "diffusion.unet.")
    groups = config.integer("n_groups", _BEFORE_0_6["n_groups"])
    network = read_unet(folder / WEIGHTS, "diffusion.unet.", unet, groups, horizon)
    stated = config.integers("down_dims", network.config["channels"])
    if list(stated) != network.config["channels"]:
        refuse(file, f"down_dims is {list(stated)}, the weights have {network.config['channels']} channels")

    if generation in ("S0", "S1"):
        names = {key: key for key in inputs}
        normalize, action_part = _from_buffers(folder / WEIGHTS, config, generation, state, inputs, action)
    else:
        names, normalize, action_part = _from_processors(folder, inputs, action, findings)
    parts = _parts(folder, config, inputs, names, normalize, weights, findings)

    scheduler, steps = _scheduler(config, findings)
    rest = [k for k in weights if not k.startswith(("diffusion.unet.", "diffusion.rgb_encoder."))]
    if rest:
        refuse(folder / WEIGHTS, f"weights {comma_list(rest)}, which LeRobot's diffusion policy does not have")
    findings.found["weights"] = f"{WEIGHTS} (LeRobot keeps no moving average)"
    return assemble(
        folder,
        findings,
        network,
        task="lerobot",
        parts=parts,
        action=action_part,
        n_obs_steps=n_obs_steps,
        horizon=horizon,
        n_action_steps=n_action_steps,
        first_action=n_obs_steps - 1,
        scheduler=scheduler,
        num_inference_steps=steps,
    )


def _generation(folder: Path, config: Fields) -> str:
    kind = config.raw("type")
    if kind is not None and kind != "diffusion":
        refuse(config.file, f"type is {str(kind)[:60]!r}; only LeRobot's 'diffusion' policies can be read")
    if config.has("input_shapes"):
        return "S0"
    if not config.has("input_features"):
        refuse(config.file, "neither input_features nor input_shapes is there: no policy of LeRobot")
    if kind is None and not config.has("noise_scheduler_type"):
        refuse(config.file, "type is missing and noise_scheduler_type, too: no diffusion policy of LeRobot")
    if not (folder / PREPROCESSOR).is_file() and not (folder / POSTPROCESSOR).is_file():
        return "S1"
    return "S3" if {"pretrained_revision", "gradient_checkpointing"} & set(config.values) else "S2"


def _features(config: Fields, generation: str) -> tuple[dict[str, _Feature], _Feature]:
    """Inputs in the order of the configuration, and the action."""
    if generation == "S0":
        shapes, outputs = config.part("input_shapes"), config.part("output_shapes")
        inputs = {key: _Feature(_kind_by_name(key), shapes.integers(key)) for key in shapes.values}
        return inputs, _Feature("ACTION", outputs.integers(ACTION, length=1))
    features, outputs = config.part("input_features"), config.part("output_features")
    inputs = {}
    for key in features.values:
        entry = features.part(key)
        inputs[key] = _Feature(entry.text("type").upper(), entry.integers("shape"))
    return inputs, _Feature("ACTION", outputs.part(ACTION).integers("shape", length=1))


def _kind_by_name(key: str) -> str:
    if key.startswith("observation.image"):
        return "VISUAL"
    return "ENV" if key == ENVIRONMENT else "STATE"


def _without_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The networks alone: buffers of statistics may be infinite where they are not used."""
    prefixes = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def _part(
    file: Path, field: str, mode: str, statistics: Mapping[str, Tensor], dim: int, eps: float, patched: bool
) -> AffinePart | None:
    """Normalization by one mode.

    Args:
        file: for messages, field without the statistic's name.
        field: for messages, field without the statistic's name.
        mode: one of :data:`_MODES`.
        statistics: by name.
        dim: number of coordinates.
        eps: of the processor.
        patched: widths of zero become eps (S2 on); otherwise eps is added to all of them.

    Returns:
        The part; None if no statistic of this mode is there.
    """
    names = {
        "MIN_MAX": ("min", "max"),
        "MEAN_STD": ("mean", "std"),
        "QUANTILES": ("q01", "q99"),
        "QUANTILE10": ("q10", "q90"),
    }
    if mode == "IDENTITY":
        return AffinePart.identity(dim)
    there = [name for name in names[mode] if name in statistics]
    if not there:
        return None
    if len(there) < 2:
        refuse(file, f"{field}.{names[mode][0]} or .{names[mode][1]} is missing; {mode} needs both")
    low, high = (statistics[name].float().flatten() for name in names[mode])
    if not (bool(torch.isfinite(low).all()) and bool(torch.isfinite(high).all())):
        refuse(file, f"{field}.{names[mode][0]} or .{names[mode][1]} is NaN or infinite: the statistics were never "
                     "filled")  # fmt: skip
    if len(low) != len(high):
        refuse(file, f"{field}: {names[mode][0]} has {len(low)} coordinates, {names[mode][1]} {len(high)}")
    if mode == "MEAN_STD":
        return AffinePart.standardizing(low, high + eps).checked(file, field, dim)
    width = high - low
    if bool((width < 0).any()):
        refuse(file, f"{field}.{names[mode][0]} is larger than .{names[mode][1]}")
    width = torch.where(width == 0, torch.full_like(width, eps), width) if patched else width + eps
    return AffinePart.from_range(low, width).checked(file, field, dim)


def _from_buffers(
    file: Path,
    config: Fields,
    generation: str,
    state: Mapping[str, Tensor],
    inputs: Mapping[str, _Feature],
    action: _Feature,
) -> tuple[Normalization, AffinePart]:
    """S0 and S1: statistics are buffers, named by key with dots turned into underscores."""
    if generation == "S0":
        by_key = {k: config.part("input_normalization_modes") for k in inputs}
        by_key[ACTION] = config.part("output_normalization_modes")
        modes = {key: part.text(key, "IDENTITY").upper() for key, part in by_key.items()}
    else:
        mapping = config.part("normalization_mapping")
        kinds = {**inputs, ACTION: action}
        modes = {key: mapping.text(feature.kind, "IDENTITY").upper() for key, feature in kinds.items()}
    for key, mode in modes.items():
        if mode not in _MODES[:3]:
            refuse(config.file, f"the normalization of {key!r} is {mode!r}; expected MIN_MAX, MEAN_STD or IDENTITY")

    def part(group: str, key: str, dim: int) -> AffinePart:
        field = f"{group}.buffer_{key.replace('.', '_')}"
        found = _part(file, field, modes[key], without_prefix(state, f"{field}."), dim, 1e-8, patched=False)
        if found is None:
            refuse(file, f"{field} is missing, and there are no processor files: without statistics the policy "
                         "would play normalized actions; copy the whole folder, or add the statistics")  # fmt: skip
        return found

    return (
        lambda key, dim: part("normalize_inputs", key, dim),
        part("unnormalize_outputs", ACTION, action.shape[0]),
    )


@dataclass(frozen=True)
class _Processor:
    """A normalizer step of a processor file."""

    file: Path
    state_file: Path
    features: dict[str, str]
    modes: dict[str, str]
    only: list[str] | None
    eps: float
    statistics: dict[str, Tensor]

    def part(self, key: str, dim: int) -> AffinePart | None:
        """Normalization of a feature; None if its statistics are not there."""
        if key not in self.features or (self.only is not None and key not in self.only):
            return AffinePart.identity(dim)
        mode = self.modes.get(self.features[key], "IDENTITY")
        if mode not in _MODES:
            refuse(self.file, f"norm_map.{self.features[key]} is {mode!r}; expected one of {', '.join(_MODES)}")
        statistics = without_prefix(self.statistics, f"{key}.")
        return _part(self.state_file, key, mode, statistics, dim, self.eps, patched=True)


def _from_processors(
    folder: Path, inputs: Mapping[str, _Feature], action: _Feature, findings: Findings
) -> tuple[dict[str, str], Normalization, AffinePart]:
    """S2 on: names of the observations before renaming, and normalization by the processor files."""
    known = ("rename_observations_processor", "to_batch_processor", "device_processor", "normalizer_processor")
    renames, before = _read_processor(folder, PREPROCESSOR, known, "normalizer_processor")
    after_steps = ("unnormalizer_processor", "device_processor")
    _, after = _read_processor(folder, POSTPROCESSOR, after_steps, "unnormalizer_processor")
    names = {key: key for key in inputs}
    for theirs, ours in renames.items():
        if ours in names:
            names[ours] = theirs
    if len(set(names.values())) < len(names):
        refuse(folder / PREPROCESSOR, f"rename_map gives one name to several of {comma_list(names)}")
    if renames:
        findings.found["renamed"] = ", ".join(f"{theirs} is {ours}" for theirs, ours in renames.items())

    def normalize(key: str, dim: int) -> AffinePart:
        part = before.part(key, dim)
        if part is not None:
            return part
        if inputs[key].kind != "VISUAL":
            refuse(before.state_file, f"statistics of {key!r} are missing; the network would see raw values")
        findings.assumed.append(f"no statistics of {key!r} are there: it enters as it is, as LeRobot lets it")
        return AffinePart.identity(dim)

    action_part = after.part(ACTION, action.shape[0])
    if action_part is None or ACTION not in after.features:
        refuse(after.state_file, "statistics of 'action' are missing: the policy would play normalized actions")
    return names, normalize, action_part


def _read_processor(folder: Path, name: str, known: tuple[str, ...], wanted: str) -> tuple[dict[str, str], _Processor]:
    file = folder / name
    if not file.is_file():
        refuse(file, "is missing: without it the policy would see or play raw normalized values; copy the whole folder")
    steps = Fields(file, read_json(file)).raw("steps", [])
    if not isinstance(steps, list):
        refuse(file, "steps is no list")
    renames: dict[str, str] = {}
    processor: _Processor | None = None
    for number, entry in enumerate(steps):
        step = Fields(file, entry, f"steps[{number}]")
        kind = step.raw("registry_name")
        if kind not in known:
            refuse(file, f"{step.where} is {str(kind or step.raw('class'))[:80]!r}; this library knows "
                         f"{', '.join(known)}, and runs no others")  # fmt: skip
        about = step.part("config")
        if kind == "rename_observations_processor":
            renames = {str(k): about.part("rename_map").text(k) for k in about.part("rename_map").values}
        if kind == wanted:
            features = about.part("features")
            modes = about.part("norm_map")
            state_file = file_within(folder, step.raw("state_file"), f"{step.where}.state_file", file)
            processor = _Processor(
                file,
                state_file,
                {key: features.part(key).text("type").upper() for key in features.values},
                {key: modes.text(key).upper() for key in modes.values},
                about.names("normalize_observation_keys") if about.has("normalize_observation_keys") else None,
                about.number("eps", 1e-8),
                read_safetensors(state_file),
            )
    if processor is None:
        refuse(file, f"has no step {wanted}: the policy would see or play normalized values")
    return renames, processor


def _parts(
    folder: Path,
    config: Fields,
    inputs: Mapping[str, _Feature],
    names: Mapping[str, str],
    normalize: Normalization,
    weights: Mapping[str, Tensor],
    findings: Findings,
) -> dict[str, AffinePart | ForeignCamera]:
    """State, then cameras in the order of the configuration, then the environment's state."""
    if STATE not in inputs:
        refuse(config.file, f"there is no {STATE} among the inputs {comma_list(inputs)}, which LeRobot's network needs")
    cameras = [key for key, feature in inputs.items() if feature.kind == "VISUAL"]
    vectors = [key for key in (STATE, ENVIRONMENT) if key in inputs]
    unused = [key for key in inputs if key not in cameras and key not in vectors]
    if unused:
        findings.assumed.append(f"{comma_list(unused)}: inputs that LeRobot's network does not use")
    parts: dict[str, AffinePart] = {}
    for key in vectors:
        shape = inputs[key].shape
        if len(shape) != 1:
            refuse(config.file, f"{key} has shape {list(shape)}; expected a vector")
        parts[names[key]] = normalize(key, shape[0])
    encoders = _encoders(folder, config, inputs, cameras, normalize, weights)
    ordered: dict[str, AffinePart | ForeignCamera] = {names[STATE]: parts[names[STATE]]}
    ordered |= {names[key]: encoders[key] for key in cameras}
    ordered |= {names[key]: parts[names[key]] for key in vectors[1:]}
    findings.found["observations"] = ", ".join(
        f"{key} ({'camera' if isinstance(part, ForeignCamera) else len(part.center)})" for key, part in ordered.items()
    )
    return ordered


def _encoders(
    folder: Path,
    config: Fields,
    inputs: Mapping[str, _Feature],
    cameras: list[str],
    normalize: Normalization,
    weights: Mapping[str, Tensor],
) -> dict[str, ForeignCamera]:
    if not cameras:
        return {}
    separate = config.flag("use_separate_rgb_encoder_per_camera", False)
    backbone = config.text("vision_backbone", "resnet18", list(RESNET_FEATURES))
    state = without_prefix(weights, "diffusion.rgb_encoder.")
    crop = [84, 84] if "crop_shape" not in config.values else config.raw("crop_shape")
    resize = config.integers("resize_shape", length=2) if config.has("resize_shape") else None
    found: dict[str, ForeignCamera] = {}
    for number, key in enumerate(cameras):
        shape = inputs[key].shape
        if len(shape) != 3:
            refuse(config.file, f"{key} has shape {list(shape)}; expected channels, height and width")
        part = normalize(key, shape[0])
        about: dict[str, Any] = {
            "layout": "CHW",
            "shape": list(shape),
            "scale": (1 / part.width).tolist(),
            "offset": (part.base - part.center / part.width).tolist(),
        }
        if resize is not None:
            about["resize"] = list(resize)
        if crop is not None:
            about["crop"] = list(config.integers("crop_shape", (84, 84), length=2))
        own = without_prefix(state, f"{number}.") if separate else state
        found[key] = read_lerobot_encoder(folder / WEIGHTS, key, own, about, backbone)
    return found


def _scheduler(config: Fields, findings: Findings) -> tuple[dict[str, Any], int]:
    kind = config.text("noise_scheduler_type", "DDPM", ("DDPM", "DDIM"))
    values = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100, **config.values}
    values = {k: v for k, v in values.items() if k not in ("variance_type", "steps_offset", "set_alpha_to_one")}
    scheduler, train_steps = read_scheduler_config(Fields(config.file, values), findings, kind)
    steps = config.integer("num_inference_steps", train_steps, most=train_steps)
    describe_steps(findings, scheduler, train_steps, steps, old=False)
    return scheduler, steps
