"""Map the image encoders of robomimic, diffusion_policy and LeRobot to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpolicy.interop.checkpoint_files import comma_list, refuse
from specpolicy.interop.fields import Fields
from specpolicy.interop.foreign import ForeignCamera

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])
IMAGENET_DEVIATION = torch.tensor([0.229, 0.224, 0.225])
RESNET_FEATURES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}

_ROBOMIMIC_BACKBONES = {"ShallowConv": "shallow", "ResNet18Conv": "resnet18", "ResNet50Conv": "resnet50"}
_CHILDREN = {"0": "conv1", "1": "bn1", **{str(4 + stage): f"layer{1 + stage}" for stage in range(4)}}
"""torchvision's names of a ResNet's children, by their place in ``nn.Sequential(*children)``."""


def read_visual_core(
    path: Path,
    key: str,
    encoder: Fields,
    shape: Sequence[int],
    state: Mapping[str, Tensor],
    *,
    layout: str = "HWC",
    crop_rounding: str = "down",
    crops_at_random: bool = False,
) -> ForeignCamera:
    """Map robomimic's ``VisualCore``: crop, backbone, spatial softmax, linear layer, ReLU.

    Args:
        path: of the checkpoint.
        key: of the observation.
        encoder: ``observation.encoder.rgb`` of its configuration.
        shape: channels, height, width.
        state: of its network, names below the key.
        layout: of images as the package is given them.
        crop_rounding: of the centred crop.
        crops_at_random: whether a crop that evaluation centres is configured
            elsewhere; then ``encoder`` holds it all the same.

    Raises:
        CheckpointError: it is another encoder, or the weights are not those of this one.
    """
    if encoder.text("core_class", "VisualCore") != "VisualCore":
        encoder.wrong("core_class", "VisualCore: language-conditioned and other cores are not supported")
    core = encoder.part("core_kwargs")
    name = core.text("backbone_class", "ResNet18Conv", list(_ROBOMIMIC_BACKBONES))
    core.text("pool_class", "SpatialSoftmax", ["SpatialSoftmax"])
    if core.part("backbone_kwargs").flag("input_coord_conv", False):
        core.part("backbone_kwargs").wrong("input_coord_conv", "false")
    if core.part("pool_kwargs").flag("output_variance", False):
        core.part("pool_kwargs").wrong("output_variance", "false")
    # each tensor is there twice, since the container and its parts are both attributes
    inner = {k.removeprefix("nets."): v for k, v in state.items() if k.startswith("nets.")}
    _check_twins(path, key, state, inner)
    weights = {**_backbone(inner, "0.nets."), **_pool(inner, "1.")}
    if "3.weight" not in inner:
        refuse(path, f"encoder of {key!r} has no linear layer (feature_dimension null), which is not supported")
    weights |= {"head.0.weight": inner["3.weight"], "head.0.bias": inner.get("3.bias", torch.zeros(0))}
    config: dict[str, Any] = {
        "layout": layout,
        "shape": list(shape),
        "backbone": _ROBOMIMIC_BACKBONES[name],
        **_norm(weights),
        **_keypoints(weights),
        "features": len(weights["head.0.weight"]),
    }
    randomizer = encoder.raw("obs_randomizer_class")
    if randomizer == "CropRandomizer":
        crop = encoder.part("obs_randomizer_kwargs")
        if crop.integer("num_crops", 1) != 1 or crop.flag("pos_enc", False):
            refuse(path, f"{crop.where}: several crops or position encodings are not supported")
        config["crop"] = [crop.integer("crop_height"), crop.integer("crop_width")]
        config["crop_rounding"] = crop_rounding
    elif randomizer is not None:
        encoder.wrong("obs_randomizer_class", "CropRandomizer or null")
    return ForeignCamera(config, checked_encoder(path, key, config, weights), config["features"])


def _check_twins(path: Path, key: str, state: Mapping[str, Tensor], inner: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        twin = name.replace("backbone.", "0.", 1) if name.startswith("backbone.") else name.replace("pool.", "1.", 1)
        if not name.startswith("nets.") and (twin not in inner or not torch.equal(inner[twin], tensor)):
            refuse(path, f"encoder of {key!r}: {name} and nets.{twin} should be the same tensor; tampered with")


def read_lerobot_encoder(
    path: Path, key: str, state: Mapping[str, Tensor], config: dict[str, Any], backbone: str
) -> ForeignCamera:
    """Map LeRobot's ``DiffusionRgbEncoder``: resize, crop, ResNet, spatial softmax, linear layer, ReLU.

    Args:
        path: of the weights.
        key: of the observation.
        state: of its encoder.
        config: layout, shape, resize, crop, scale and offset in our terms.
        backbone: name of the ResNet.

    Raises:
        CheckpointError: the weights are not those of this encoder.
    """
    weights = {**_backbone(state, "backbone."), **_pool(state, "pool.")}
    weights |= {f"head.0.{part}": state[f"out.{part}"] for part in ("weight", "bias") if f"out.{part}" in state}
    if "head.0.weight" not in weights:
        refuse(path, f"the encoder of {key!r} lacks out.weight; the weights are incomplete")
    config = {**config, "backbone": backbone, **_norm(weights), **_keypoints(weights)}
    config["features"] = len(weights["head.0.weight"])
    return ForeignCamera(config, checked_encoder(path, key, config, weights), config["features"])


def read_torchvision_encoder(
    path: Path, key: str, state: Mapping[str, Tensor], config: dict[str, Any], backbone: str
) -> ForeignCamera:
    """Map a plain ResNet with average pooling, as diffusion_policy's ``MultiImageObsEncoder`` has one.

    Args:
        path: as in :func:`read_lerobot_encoder`.
        key: as in :func:`read_lerobot_encoder`.
        state: as in :func:`read_lerobot_encoder`.
        config: as in :func:`read_lerobot_encoder`.
        backbone: as in :func:`read_lerobot_encoder`.

    Raises:
        CheckpointError: the weights are not those of this encoder.
    """
    weights = {f"backbone.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
    config = {**config, "backbone": backbone, **_norm(weights), "pool": "average", "features": None}
    return ForeignCamera(config, checked_encoder(path, key, config, weights), RESNET_FEATURES[backbone])


def _backbone(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights of a backbone in an ``nn.Sequential``, under the names of its modules."""
    weights: dict[str, Tensor] = {}
    shallow = f"{prefix}6.weight" in state
    for name, tensor in state.items():
        match = re.match(rf"{re.escape(prefix)}(\d)\.(.+)", name)
        if match:
            child = match[1] if shallow else _CHILDREN.get(match[1], match[1])
            weights[f"backbone.{child}.{match[2]}"] = tensor
    return weights


def _pool(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights of a spatial softmax; LeRobot's has no temperature, which is one."""
    weights = {
        f"pool.{name.removeprefix(prefix)}": tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and "pos_" not in name
    }
    weights.setdefault("pool.temperature", torch.ones(1))
    return weights


def _norm(weights: Mapping[str, Tensor]) -> dict[str, str]:
    return {"norm": "frozen_batch" if any(name.endswith("running_mean") for name in weights) else "group"}


def _keypoints(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    nets = weights.get("pool.nets.weight")
    return {"pool": "spatial_softmax", "keypoints": None if nets is None else len(nets)}


def checked_encoder(path: Path, key: str, config: Mapping[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's weights after comparing their names and shapes with what its configuration builds.

    Args:
        path: of the checkpoint.
        key: of the observation.
        config: in our terms.
        weights: under our names.

    Raises:
        CheckpointError: they do not fit.
    """
    from specpolicy.policies.networks.vision import ImageEncoder

    arguments = {name: value for name, value in config.items() if name != "layout"}
    try:
        with torch.device("meta"):
            expected = ImageEncoder(**arguments).state_dict()
    except ValueError as error:
        refuse(path, f"encoder of {key!r}: {error}", error)
    own = ("scale", "offset")
    expected = {name: tensor for name, tensor in expected.items() if name not in own}
    for name in sorted(set(expected) ^ set(weights)):
        problem = "is missing" if name in expected else "is none of its weights"
        refuse(path, f"encoder of {key!r} ({config['backbone']}, {config['norm']} norm): {name} {problem}; there are "
                     f"{len(weights)}, {comma_list(sorted(weights), 2)}")  # fmt: skip
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            refuse(path, f"encoder of {key!r}: {name} has shape {tuple(tensor.shape)}; expected "
                         f"{tuple(expected[name].shape)}")  # fmt: skip
    return weights
