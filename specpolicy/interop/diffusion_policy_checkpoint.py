"""Read checkpoints (``.ckpt``) of real-stanford/diffusion_policy.

Four of its policies can be read: the U-Net and the transformer on vectors, the U-Net on images with plain ResNets, and
the one with robomimic's encoder ("hybrid"). Configurations may be unresolved: plain references are looked up,
expressions are never evaluated, and what they would have said is read off the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpolicy.interop.checkpoint_files import comma_list, finite, plain_values, refuse, tensors_of, without_prefix
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
from specpolicy.interop.image_encoders import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    RESNET_FEATURES,
    read_torchvision_encoder,
    read_visual_core,
)
from specpolicy.interop.network_weights import NetworkWeights, read_transformer, read_unet

_POLICIES = {
    "DiffusionUnetLowdimPolicy": "U-Net on vectors",
    "DiffusionTransformerLowdimPolicy": "transformer on vectors",
    "DiffusionUnetImagePolicy": "U-Net on images",
    "DiffusionUnetHybridImagePolicy": "U-Net on images with robomimic's encoder",
}
_REFUSED = {
    "DiffusionTransformerHybridImagePolicy": "transformers on images are not supported",
    "DiffusionUnetVideoPolicy": "video policies are not supported",
    "BETLowdimPolicy": "a behaviour transformer has no diffusion chain",
    "IbcDfoLowdimPolicy": "an implicit policy has no diffusion chain",
    "IbcDfoHybridImagePolicy": "an implicit policy has no diffusion chain",
    "RobomimicLowdimPolicy": "robomimic's policies of other kinds have no diffusion chain",
    "RobomimicImagePolicy": "robomimic's policies of other kinds have no diffusion chain",
}
_MODULE = "diffusion_policy.policy."


def is_diffusion_policy(payload: Any) -> bool:
    """Tell whether an unpickled archive has the layout of diffusion_policy's checkpoints, of whatever policy."""
    return isinstance(payload, Mapping) and {"cfg", "state_dicts"} <= set(payload)


def read_diffusion_policy(path: Path, payload: Mapping[str, Any]) -> ForeignPolicy:
    """Describe a policy in terms of our format.

    Args:
        path: of the file, for messages.
        payload: what it holds.

    Raises:
        CheckpointError: another policy, local conditions, or a timestep among the tokens; a field is missing or wrong.
    """
    values = plain_values(payload["cfg"])
    cfg = Fields(path, values, "cfg", root=values if isinstance(values, Mapping) else None)
    policy = cfg.part("policy")
    kind = _kind(path, policy)
    findings = Findings(f"diffusion_policy {kind} (.ckpt), {_POLICIES[kind]}")
    state = _weights(path, cfg, payload["state_dicts"], findings)
    if kind.endswith("ImagePolicy"):
        described = _ImagePolicy(path, cfg, policy, state, findings, hybrid="Hybrid" in kind).read()
    elif "Transformer" in kind:
        described = _transformer(path, cfg, policy, state, findings)
    else:
        described = _unet(path, cfg, policy, state, findings)
    return described


def _kind(path: Path, policy: Fields) -> str:
    target = policy.text("_target_")
    name = target.rpartition(".")[2]
    if name in _REFUSED:
        refuse(path, f"cfg.policy._target_ is {name}: {_REFUSED[name]}; supported: {', '.join(_POLICIES)}")
    if not target.startswith(_MODULE) or name not in _POLICIES:
        refuse(path, f"cfg.policy._target_ is {target[:120]!r}, which is not known; supported: "
                     f"{', '.join(_POLICIES)} of {_MODULE[:-1]}")  # fmt: skip
    return name


def _weights(path: Path, cfg: Fields, states: Any, findings: Findings) -> dict[str, Tensor]:
    """The averaged weights where the run kept them, as the package's own evaluation takes."""
    states = Fields(path, states, "state_dicts")
    averaged = cfg.part("training").flag("use_ema", states.has("ema_model"))
    name = "ema_model" if averaged else "model"
    if not states.has(name):
        refuse(path, f"state_dicts.{name} is missing although cfg.training.use_ema is {str(averaged).lower()}; there "
                     f"are {comma_list(states.values)}")  # fmt: skip
    findings.found["weights"] = f"state_dicts.{name}" + (", the moving average" if averaged else "")
    state = tensors_of(path, states.raw(name), f"state_dicts.{name}")
    kept = {k: v for k, v in state.items() if not k.endswith("_dummy_variable") and ".input_stats." not in k}
    masks = {k: v for k, v in kept.items() if k in ("model.mask", "model.memory_mask")}
    return {**finite(path, {k: v for k, v in kept.items() if k not in masks}, f"state_dicts.{name}"), **masks}


def _normalizer(path: Path, state: Mapping[str, Tensor], key: str, dim: int | None) -> AffinePart:
    """Scale and offset of a field: x′ = x · scale + offset; None takes the dimensions that are there."""
    vectors = {name: state.get(f"normalizer.params_dict.{key}.{name}") for name in ("scale", "offset")}
    for name, vector in vectors.items():
        if vector is None:
            refuse(path, f"normalizer.params_dict.{key}.{name} is missing: without it raw values would be seen or "
                         "normalized actions played")  # fmt: skip
    scale, offset = (vector.flatten() for vector in vectors.values() if vector is not None)
    part = AffinePart(torch.zeros_like(scale), 1 / scale, offset)
    return part.checked(path, f"normalizer.params_dict.{key}", dim or len(scale))


def _steps(policy: Fields, cfg: Fields) -> tuple[int, int, int]:
    """Observation steps, horizon, executed steps, the latter with the steps that latency takes away."""
    latency = cfg.integer("n_latency_steps", 0, least=0)
    n_obs_steps, horizon = (_either(policy, cfg, name) for name in ("n_obs_steps", "horizon"))
    if policy.has("n_action_steps") or not cfg.has("n_action_steps"):
        executed = policy.integer("n_action_steps", most=10_000)
    else:
        executed = cfg.integer("n_action_steps", most=10_000) + latency
    return n_obs_steps, horizon, executed


def _either(policy: Fields, cfg: Fields, name: str) -> int:
    """A field of the policy, or where it cannot be resolved that of the same name at the top."""
    return (policy if policy.has(name) or not cfg.has(name) else cfg).integer(name, most=10_000)


def _played(policy: Fields, findings: Findings) -> tuple[dict[str, Any], int]:
    scheduler, train_steps = read_scheduler_config(policy.part("noise_scheduler"), findings, old=True)
    steps = policy.integer("num_inference_steps", train_steps, most=train_steps)
    describe_steps(findings, scheduler, train_steps, steps, old=True)
    return scheduler, steps


def _remarks(cfg: Fields, findings: Findings) -> str:
    """Tell what environment runners do with actions after the policy; returns the task's name."""
    task = cfg.part("task")
    latency = cfg.integer("n_latency_steps", 0, least=0)
    if latency:
        findings.assumed.append(
            f"the package's runner drops the first {latency} executed actions (n_latency_steps); here they are kept"
        )
    if task.raw("abs_action") is True:
        findings.assumed.append(
            "actions are absolute poses with 6-D rotations, as the policy gives them; the package's environment "
            "runner, not the policy, turns them into axis-angle"
        )
    return str(cfg.raw("task_name", task.raw("name", "diffusion_policy")))


def _slice(findings: Findings, policy: Fields, horizon: int, n_action_steps: int, first: int) -> tuple[int, int, int]:
    """Horizon, executed actions and the first of them: with pred_action_steps_only nothing else is predicted."""
    if policy.flag("pred_action_steps_only", False):
        horizon, first = n_action_steps, 0
    if first + n_action_steps > horizon > first:
        findings.assumed.append(
            f"n_action_steps is {n_action_steps}, of which the chunk holds {horizon - first}: so many are executed"
        )
        n_action_steps = horizon - first
    return horizon, n_action_steps, first


def _vector_parts(
    path: Path, cfg: Fields, state: Mapping[str, Tensor], dim: int, findings: Findings
) -> dict[str, AffinePart | ForeignCamera]:
    """The one observation of policies on vectors, joined by the dataset's class."""
    names = cfg.part("task").raw("obs_keys") or cfg.part("task").part("dataset").raw("obs_keys")
    joined = ""
    if isinstance(names, list) and names:
        findings.joined["obs"] = [str(name) for name in names]
        joined = f", joined from {', '.join(findings.joined['obs'])}"
    findings.found["observations"] = f"obs ({dim}){joined}"
    return {"obs": _normalizer(path, state, "obs", dim)}


def _assembled(
    path: Path,
    cfg: Fields,
    policy: Fields,
    state: Mapping[str, Tensor],
    findings: Findings,
    network: NetworkWeights,
    parts: Mapping[str, AffinePart | ForeignCamera],
    action_dim: int,
    steps: tuple[int, int, int, int],
    inpainting: bool = False,
) -> ForeignPolicy:
    """Add what all kinds of policies share; ``steps`` are n_obs_steps, horizon, n_action_steps and the first played."""
    scheduler, num_inference_steps = _played(policy, findings)
    return assemble(
        path,
        findings,
        network,
        task=_remarks(cfg, findings),
        parts=parts,
        action=_normalizer(path, state, "action", action_dim),
        n_obs_steps=steps[0],
        horizon=steps[1],
        n_action_steps=steps[2],
        first_action=steps[3],
        scheduler=scheduler,
        num_inference_steps=num_inference_steps,
        inpainting=inpainting,
    )


def _unet(path: Path, cfg: Fields, policy: Fields, state: Mapping[str, Tensor], findings: Findings) -> ForeignPolicy:
    n_obs_steps, horizon, n_action_steps = _steps(policy, cfg)
    first = n_obs_steps - 1 if policy.flag("oa_step_convention", False) else n_obs_steps
    horizon, n_action_steps, first = _slice(findings, policy, horizon, n_action_steps, first)
    groups = policy.part("model").integer("n_groups", 8)
    network = read_unet(path, "model.", without_prefix(state, "model."), groups, horizon)
    inpainting = not network.cond_dim
    if policy.flag("obs_as_local_cond", False):
        refuse(path, "cfg.policy.obs_as_local_cond is true: local conditions are not supported; global ones and "
                     "inpainted observations are")  # fmt: skip
    if policy.flag("obs_as_global_cond", not inpainting) == inpainting:
        refuse(path, f"cfg.policy.obs_as_global_cond is {str(inpainting).lower()}, the network has a condition of "
                     f"{network.cond_dim} numbers")  # fmt: skip
    if inpainting:
        action_dim = policy.integer("action_dim", len(_normalizer(path, state, "action", None).center))
        obs_dim = network.action_dim - action_dim
        if obs_dim < 1:
            refuse(path, f"the network denoises {network.action_dim} coordinates, of which {action_dim} are actions: "
                         "no observations are left to be inpainted")  # fmt: skip
        findings.found["condition"] = f"the first {n_obs_steps} steps of {obs_dim} inpainted coordinates"
    else:
        action_dim, obs_dim = network.action_dim, network.cond_dim // n_obs_steps
    parts = _vector_parts(path, cfg, state, obs_dim, findings)
    steps = n_obs_steps, horizon, n_action_steps, first
    return _assembled(path, cfg, policy, state, findings, network, parts, action_dim, steps, inpainting)


def _transformer(
    path: Path, cfg: Fields, policy: Fields, state: Mapping[str, Tensor], findings: Findings
) -> ForeignPolicy:
    n_obs_steps, horizon, n_action_steps = _steps(policy, cfg)
    heads = policy.part("model").integer("n_head", 12, most=1024)
    network, tokens = read_transformer(path, "model.", without_prefix(state, "model."), heads)
    horizon, n_action_steps, first = _slice(findings, policy, horizon, n_action_steps, n_obs_steps - 1)
    if tokens != horizon:
        refuse(path, f"the transformer was built for {tokens} actions, the chunk has {horizon} (cfg.policy.horizon)")
    inpainting = not network.cond_dim
    action_dim = network.action_dim
    obs_dim = network.cond_dim // n_obs_steps
    if inpainting:
        action_dim = policy.integer("action_dim", len(_normalizer(path, state, "action", None).center))
        obs_dim = network.action_dim - action_dim
    elif network.config["observation_steps"] != n_obs_steps:
        refuse(path, f"the transformer was built for {network.config['observation_steps']} observation steps, "
                     f"cfg.policy.n_obs_steps is {n_obs_steps}")  # fmt: skip
    parts = _vector_parts(path, cfg, state, obs_dim, findings)
    steps = n_obs_steps, horizon, n_action_steps, first
    return _assembled(path, cfg, policy, state, findings, network, parts, action_dim, steps, inpainting)


class _ImagePolicy:
    """Reads the two policies on images.

    Args:
        path, cfg, policy, state, findings: as everywhere in this module.
        hybrid: with robomimic 0.2.0's encoder.
    """

    def __init__(
        self, path: Path, cfg: Fields, policy: Fields, state: Mapping[str, Tensor], findings: Findings, hybrid: bool
    ) -> None:
        self.path, self.cfg, self.policy, self.state = path, cfg, policy, state
        self.findings, self.hybrid = findings, hybrid

    def read(self) -> ForeignPolicy:
        """Describe the policy."""
        n_obs_steps, horizon, n_action_steps = _steps(self.policy, self.cfg)
        horizon, n_action_steps, first = _slice(self.findings, self.policy, horizon, n_action_steps, n_obs_steps - 1)
        groups = self.policy.integer("n_groups", 8)
        network: NetworkWeights = read_unet(self.path, "model.", without_prefix(self.state, "model."), groups, horizon)
        if not self.policy.flag("obs_as_global_cond", True) or not network.cond_dim:
            refuse(self.path, "cfg.policy.obs_as_global_cond is false: inpainted image features are not supported")
        parts = self._parts()
        self.findings.found["observations"] = ", ".join(
            f"{key} ({'camera' if isinstance(part, ForeignCamera) else len(part.center)})"
            for key, part in parts.items()
        )
        steps = n_obs_steps, horizon, n_action_steps, first
        return _assembled(
            self.path, self.cfg, self.policy, self.state, self.findings, network, parts, network.action_dim, steps
        )

    def _parts(self) -> dict[str, AffinePart | ForeignCamera]:
        source = self.policy if self.policy.has("shape_meta") else self.cfg
        obs = source.part("shape_meta").part("obs")
        kinds = {key: obs.part(key).text("type", "low_dim", ("rgb", "low_dim")) for key in obs.values}
        shapes = {key: obs.part(key).integers("shape") for key in obs.values}
        order = list(kinds)
        if not self.hybrid:
            order = sorted(k for k in kinds if kinds[k] == "rgb") + sorted(k for k in kinds if kinds[k] == "low_dim")
        parts: dict[str, AffinePart | ForeignCamera] = {}
        for key in order:
            if kinds[key] == "low_dim":
                if len(shapes[key]) != 1:
                    obs.part(key).wrong("shape", "one dimension for a low_dim observation")
                parts[key] = _normalizer(self.path, self.state, key, shapes[key][0])
                continue
            if len(shapes[key]) != 3:
                obs.part(key).wrong("shape", "channels, height and width")
            pixels = _normalizer(self.path, self.state, key, shapes[key][0])
            camera = self._hybrid(key, shapes[key]) if self.hybrid else self._plain(key, shapes[key])
            # the encoder's own scale comes after that of the policy's normalizer
            outer = {"scale": torch.ones(1), "offset": torch.zeros(1)}
            scale, offset = (
                torch.tensor(camera.config.pop(name, outer[name].tolist())) for name in ("scale", "offset")
            )
            camera.config["scale"] = (scale / pixels.width).tolist()
            camera.config["offset"] = (pixels.base * scale + offset).tolist()
            parts[key] = camera
        return parts

    def _hybrid(self, key: str, shape: tuple[int, ...]) -> ForeignCamera:
        encoder: dict[str, Any] = {"core_class": "VisualCore"}
        crop = self.policy.raw("crop_shape", (76, 76))  # the class's default
        if "crop_shape" not in self.policy.values:
            self.findings.assumed.append("cfg.policy.crop_shape is missing: 76 × 76, the package's default")
        elif not self.policy.has("crop_shape"):
            crop = None
        if crop is not None:
            height, width = self.policy.integers("crop_shape", (76, 76), length=2)
            encoder |= {
                "obs_randomizer_class": "CropRandomizer",
                "obs_randomizer_kwargs": {"crop_height": height, "crop_width": width},
            }
            if not self.policy.flag("eval_fixed_crop", False):
                remark = (
                    "the package crops images at random in evaluation, too (eval_fixed_crop false); here the crop is "
                    "centred"
                )
                if remark not in self.findings.deviations:
                    self.findings.deviations.append(remark)
        return read_visual_core(
            self.path,
            key,
            Fields(self.path, encoder, "cfg.policy"),
            shape,
            without_prefix(self.state, f"obs_encoder.obs_nets.{key}."),
            layout="CHW",
            crop_rounding="nearest",
        )

    def _plain(self, key: str, shape: tuple[int, ...]) -> ForeignCamera:
        encoder = self.policy.part("obs_encoder")
        target = encoder.text("_target_").rpartition(".")[2]
        if target != "MultiImageObsEncoder":
            encoder.wrong("_target_", "MultiImageObsEncoder")
        model = encoder.part("rgb_model")
        backbone = model.text("name", "resnet18", list(RESNET_FEATURES))
        shared = encoder.flag("share_rgb_model", False)
        prefix = f"obs_encoder.key_model_map.{'rgb' if shared else key}."
        config: dict[str, Any] = {"layout": "CHW", "shape": list(shape), "antialias": False}
        for name, ours in (("resize_shape", "resize"), ("crop_shape", "crop")):
            if encoder.has(name):
                chosen = encoder.part(name) if isinstance(encoder.raw(name), Mapping) else encoder
                config[ours] = list(chosen.integers(key if chosen is not encoder else name, length=2))
        if not encoder.flag("random_crop", True):
            config.pop("crop", None)  # the package's evaluation does not crop then, whatever crop_shape says
        if encoder.flag("imagenet_norm", False):
            config |= {
                "scale": (1 / IMAGENET_DEVIATION).tolist(),
                "offset": (-IMAGENET_MEAN / IMAGENET_DEVIATION).tolist(),
            }
            remark = (
                "images are normalized twice, to [−1, 1] and then by ImageNet's statistics, as the package does "
                "(imagenet_norm)"
            )
            if remark not in self.findings.assumed:
                self.findings.assumed.append(remark)
        return read_torchvision_encoder(self.path, key, without_prefix(self.state, prefix), config, backbone)
