"""One description of a foreign policy, whichever package trained it: in terms of our own format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.interop.checkpoint_files import refuse
from specpolicy.interop.fields import Fields
from specpolicy.interop.network_weights import NetworkWeights

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


@dataclass
class Findings:
    """What a reader found in a checkpoint, what it had to assume, and where this library deviates on purpose.

    Attributes:
        format: package, and kind or generation of the file.
        found: short statements by topic.
        assumed: what the files do not say. deviations: from what the package itself would play.
        joined: observations that the package's dataset joins from several keys of its files, in this order.
    """

    format: str
    found: dict[str, str] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    joined: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as a policy's configuration keeps them."""
        return {
            "format": self.format,
            "found": dict(self.found),
            "assumed": list(self.assumed),
            "deviations": list(self.deviations),
            **({"joined": dict(self.joined)} if self.joined else {}),
        }


@dataclass(frozen=True)
class AffinePart:
    """Normalization of one part of an observation or action: x′ = (x − center) / width + base, per coordinate.

    Three vectors and not two, so that float32 keeps the digits of large offsets and tiny ranges.

    Attributes:
        center, width, base: of shape ``(dim,)``.
    """

    center: Float[Tensor, " dim"]
    width: Float[Tensor, " dim"]
    base: Float[Tensor, " dim"]

    @staticmethod
    def identity(dim: int) -> AffinePart:
        """Make the map that changes nothing."""
        return AffinePart(torch.zeros(dim), torch.ones(dim), torch.zeros(dim))

    @staticmethod
    def from_range(low: Tensor, width: Tensor) -> AffinePart:
        """Make the map of [low, low + width] to [−1, 1]."""
        return AffinePart(low, width / 2, -torch.ones_like(low))

    @staticmethod
    def standardizing(mean: Tensor, deviation: Tensor) -> AffinePart:
        """Make the map to mean 0 and standard deviation 1."""
        return AffinePart(mean, deviation, torch.zeros_like(mean))

    def checked(self, file: Path, where: str, dim: int) -> AffinePart:
        """Return the part with ``dim`` coordinates, after checking it; a single coordinate serves all.

        Raises:
            CheckpointError: another length, a number that is not finite, or a scale of zero.
        """
        parts = []
        for name in ("center", "width", "base"):
            vector: Tensor = getattr(self, name).float().flatten()
            if len(vector) not in (1, dim):
                refuse(file, f"{where} has {len(vector)} coordinates; expected {dim}")
            parts.append(vector.expand(dim).clone())
        if not all(bool(torch.isfinite(vector).all()) for vector in parts):
            refuse(file, f"{where} contains NaN or infinity, or a range or deviation of zero; it was never filled")
        if bool((parts[1] == 0).any()):
            refuse(file, f"{where} has a scale of zero or infinity, which cannot be undone")
        return AffinePart(*parts)


def join_parts(parts: Sequence[AffinePart]) -> dict[str, Tensor]:
    """Join parts into the buffers of an :class:`~specpolicy.policies.normalizer.AffineNormalizer`."""
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in ("center", "width", "base")}


@dataclass(frozen=True)
class ForeignCamera:
    """How the images of one camera are read and encoded.

    Attributes:
        config: ``layout`` (``HWC`` or ``CHW``) and arguments of an
            :class:`~specpolicy.policies.networks.vision.ImageEncoder`.
        weights: state dict of that encoder, without its scale and offset.
        features: that it gives for each observation step.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    features: int


@dataclass(frozen=True)
class ForeignPolicy:
    """A policy of another package in terms of ours.

    Attributes:
        config: fields of a :class:`~specpolicy.policies.PolicyConfig`.
        weights: state dict of the :class:`~specpolicy.policies.DiffusionPolicy` with that configuration.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]


def assemble(
    file: Path,
    findings: Findings,
    network: NetworkWeights,
    *,
    task: str,
    parts: Mapping[str, AffinePart | ForeignCamera],
    action: AffinePart,
    n_obs_steps: int,
    horizon: int,
    n_action_steps: int,
    first_action: int,
    scheduler: Mapping[str, Any],
    num_inference_steps: int,
    inpainting: bool = False,
    rotations: Sequence[Mapping[str, Any]] = (),
) -> ForeignPolicy:
    """Put a description together, and check that its pieces fit each other.

    Args:
        file: for messages.
        findings: becomes the policy's report.
        network: in our terms.
        task: name of the task.
        parts: observation parts in the order in which they enter the condition.
        action: normalization of the actions.
        n_obs_steps: observation steps seen.
        horizon: actions predicted.
        n_action_steps: actions executed.
        first_action: position in the chunk of the first executed action.
        scheduler: configuration of the diffusers scheduler.
        num_inference_steps: that the package plays.
        inpainting: observations are overwritten coordinates of the trajectory, and no condition.
        rotations: conversions of unnormalized actions, ``{"start": ..., "to": ...}``.

    Raises:
        CheckpointError: condition, trajectory or slice do not fit the network.
    """
    action_dim = len(action.center)
    observations = {key: p.features if isinstance(p, ForeignCamera) else len(p.center) for key, p in parts.items()}
    step = sum(observations.values())
    width, seen = (action_dim + step, 0) if inpainting else (action_dim, n_obs_steps * step)
    if network.action_dim != width:
        refuse(file, f"the network denoises {network.action_dim} coordinates, actions"
                     f"{' and observations' if inpainting else ''} have {width}")  # fmt: skip
    if network.cond_dim != seen:
        refuse(file, f"the network was built for a condition of {network.cond_dim} numbers, but {n_obs_steps} steps of "
                     f"{observations} give {seen}")  # fmt: skip
    if first_action + n_action_steps > horizon:
        refuse(file, f"n_action_steps={n_action_steps} from step {first_action} on do not fit into a horizon of "
                     f"{horizon}")  # fmt: skip
    cameras = {key: part for key, part in parts.items() if isinstance(part, ForeignCamera)}
    weights = {f"network.{name}": tensor for name, tensor in network.weights.items()}
    vectors = [AffinePart.identity(p.features) if isinstance(p, ForeignCamera) else p for p in parts.values()]
    for name, normalizer in (
        ("observation_normalizer", join_parts(vectors)),
        ("action_normalizer", join_parts([action])),
    ):
        weights |= {f"{name}.{buffer}": tensor for buffer, tensor in normalizer.items()}
    for number, camera in enumerate(cameras.values()):
        weights |= {f"encoders.{number}.{name}": tensor for name, tensor in camera.weights.items()}
    config: dict[str, Any] = {
        "task": task,
        "observations": observations,
        "action_dim": action_dim,
        "n_obs_steps": n_obs_steps,
        "horizon": horizon,
        "n_action_steps": n_action_steps,
        "network": network.config,
        "scheduler": dict(scheduler),
        "normalization": "affine",
        "num_inference_steps": num_inference_steps,
        "source": findings.to_dict(),
    }
    if first_action != n_obs_steps - 1:
        config["first_action"] = first_action
    if inpainting:
        config["inpainting"] = True
    if rotations:
        config["rotations"] = [dict(rotation) for rotation in rotations]
    if cameras:
        config["cameras"] = {key: camera.config for key, camera in cameras.items()}
    return ForeignPolicy(config, weights)


def read_scheduler_config(
    fields: Fields, findings: Findings, kind: str | None = None, old: bool = False
) -> tuple[dict[str, Any], int]:
    """Read the configuration of a DDPM or DDIM scheduler.

    Args:
        fields: with the names of diffusers; LeRobot's have the same.
        findings: are told.
        kind: ``DDPM`` or ``DDIM``; None reads it off ``_target_``.
        old: played by the package with diffusers 0.11.1.

    Returns:
        The configuration for diffusers, and the number of training timesteps.

    Raises:
        CheckpointError: a value is none that diffusers knows, or the variance is learned.
    """
    if kind is None:
        target = fields.text("_target_").rpartition(".")[2]
        if target not in ("DDPMScheduler", "DDIMScheduler"):
            refuse(fields.file, f"{fields.name('_target_')} is {target!r}; DDPMScheduler and DDIMScheduler can be read")
        kind = target.removesuffix("Scheduler")
    steps = fields.integer("num_train_timesteps", 100 if fields.has("noise_scheduler_type") else 1000, most=10_000)
    config: dict[str, Any] = {
        "_class_name": f"{kind}Scheduler",
        "num_train_timesteps": steps,
        "beta_start": fields.number("beta_start", 1e-4),
        "beta_end": fields.number("beta_end", 0.02),
        "beta_schedule": fields.text("beta_schedule", "linear", SCHEDULES),
        "clip_sample": fields.flag("clip_sample", True),
        "clip_sample_range": fields.number("clip_sample_range", 1.0),
        "prediction_type": fields.text("prediction_type", "epsilon", PREDICTIONS),
        "steps_offset": fields.integer("steps_offset", 0, least=0),
        "timestep_spacing": "leading",
    }
    if kind == "DDPM":
        config["variance_type"] = fields.text("variance_type", "fixed_small")
        if config["variance_type"] not in ("fixed_small", "fixed_small_log", "fixed_large"):
            fields.wrong("variance_type", "fixed_small, fixed_small_log or fixed_large: no learned variance")
    else:
        config["set_alpha_to_one"] = fields.flag("set_alpha_to_one", True)
    if old and config["clip_sample_range"] != 1.0:
        findings.assumed.append("diffusers 0.11.1 knows no clip_sample_range; the one in the file is used")
    if not 0 < config["beta_start"] <= config["beta_end"] < 1:
        refuse(fields.file, f"{fields.name('beta_start')} and beta_end are {config['beta_start']} and "
                            f"{config['beta_end']}; expected 0 < beta_start <= beta_end < 1")  # fmt: skip
    if config["clip_sample_range"] <= 0:
        fields.wrong("clip_sample_range", "a positive number")
    return config, steps


def describe_steps(findings: Findings, scheduler: Mapping[str, Any], train_steps: int, steps: int, old: bool) -> None:
    """Tell the findings what the package plays, and what of it is not played here.

    Args:
        findings: are told.
        scheduler: configuration.
        train_steps: timesteps of training.
        steps: of inference.
        old: the package plays with diffusers 0.11.1, whose DDPM is wrong for fewer steps.
    """
    kind = scheduler["_class_name"].removesuffix("Scheduler")
    findings.found["scheduler"] = (
        f"{kind}, {steps} of {train_steps} timesteps, {scheduler['beta_schedule']}, predicts "
        f"{scheduler['prediction_type']}"
    )
    if kind == "DDIM":
        findings.deviations.append(
            f"the package plays {steps} deterministic DDIM steps; exact samplers of this library sample the "
            f"{train_steps}-step DDPM chain that the network was trained for, whose distribution is another one"
        )
    elif steps < train_steps and old:
        findings.deviations.append(
            f"the package plays {steps} DDPM steps with diffusers 0.11.1, which uses the posterior of t → t−1 although "
            "it visits every k-th timestep only; this library samples the corrected chain"
        )
