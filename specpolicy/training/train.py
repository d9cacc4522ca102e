"""Train a policy from a demonstration file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from specpolicy.datasets.action_chunks import ActionChunkDataset, cut_action_chunks
from specpolicy.datasets.demonstrations import (
    DemonstrationSet,
    check_environment,
    join_demonstrations,
    read_demonstrations,
)
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.policies.checkpoint import write_seen_seeds
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.normalizer import SMALLEST_RANGE, MinMaxNormalizer
from specpolicy.speculative.process import ReverseProcess
from specpolicy.training.loop import TrainingLoop, TrainingObjective, TrainingSettings
from specpolicy.training.warm_start import adopt_denoiser, encoded_moments, fit_linear_map, widen_prefix
from specpolicy.utils.checks import check_integer, check_number
from specpolicy.utils.diffusers_schedulers import DDPMScheduler
from specpolicy.utils.digests import checkpoint_digest, file_digest

_log = logging.getLogger(__name__)


def training_target(scheduler: DDPMScheduler, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Compute the prediction that gives ``clean`` back, by the scheduler's ``prediction_type``.

    Noise ε (Ho et al. 2020, equation 14), x0 itself, or velocity √ᾱ ε − √(1−ᾱ) x0 (Salimans and Ho 2022).

    Args:
        scheduler: of the noise levels.
        clean: samples x0.
        noise: standard normal, the shape of ``clean``.
        timestep: of each sample, shape ``(n,)``.

    Returns:
        The target, the shape of ``clean``.

    Raises:
        ValueError: the prediction type is another.
    """
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "sample":
            return clean
        case "v_prediction":
            return scheduler.get_velocity(clean, noise, timestep)
        case other:
            raise ValueError(f"prediction_type {other!r}; known: epsilon, sample, v_prediction")


def diffusion_objective(
    policy: DiffusionPolicy,
    train: ActionChunkDataset,
    valid: ActionChunkDataset,
    teacher: DiffusionPolicy | None = None,
    noise_draws: int = 1,
    readout: AuxiliaryReadout | None = None,
) -> TrainingObjective:
    """Denoise action chunks under their observations, at all noise levels, or predict what a teacher predicts there.

    A ``teacher`` (Hinton et al. 2015) answers with a mean where demonstrations hold single draws, which takes noise out
    of the gradient. It must scale as the policy does.

    Args:
        policy: to train; what the objective is asked for is ``readout`` where there is one.
        train: pairs to learn from.
        valid: pairs to validate on.
        teacher: see above.
        noise_draws: noises and timesteps for each pair, whose images are encoded once.
        readout: holds the policy and auxiliary layers, whose errors are added.

    Returns:
        The objective; its identity holds what was given here, to which the caller adds configuration and data.

    Raises:
        ValueError: the teacher is of no checkpoint, by which a resumed training would know it again.
    """
    if teacher is not None and teacher.folder is None:
        raise ValueError("the teacher was not loaded from a checkpoint: save it first, and load it from there")
    identity: dict[str, Any] = {}
    if teacher is not None and teacher.folder is not None:
        identity["teacher"] = checkpoint_digest(teacher.folder)
    if noise_draws != 1:
        identity["noise_draws"] = noise_draws
    if readout is not None:
        identity["auxiliary"] = dict(readout.weights)
    return TrainingObjective(
        examples=len(train),
        loss=_Denoising(train.to(policy.device), teacher, noise_draws),
        held_out=len(valid),
        validation=_Denoising(valid.to(policy.device), teacher, noise_draws),
        save=lambda network, folder: _policy_of(network).save_pretrained(folder),
        identity=identity,
    )


class AuxiliaryReadout(nn.Module):
    """A policy, and linear layers that read vectors off the features of its images, for training alone.

    A denoising loss says little about where things are, and late: an encoder that also has to tell what was recorded
    beside the images finds them within a few epochs.

    Args:
        policy: has cameras.
        targets: normalizers of the vectors, by name.
        weights: of the mean squared errors.
    """

    def __init__(
        self, policy: DiffusionPolicy, targets: Mapping[str, MinMaxNormalizer], weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.policy, self.weights = policy, dict(weights)
        features = sum(policy.encoders.features.values())
        self.targets = nn.ModuleDict(targets)
        self.layers = nn.ModuleDict({key: nn.Linear(features, len(target.low)) for key, target in targets.items()})

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "n _"], others: Mapping[str, Float[Tensor, "n _"]]) -> None:
        """Set the layers to what reads the vectors best off the features of an encoder as it is."""
        for key, target in self.targets.items():
            matrix, shift = fit_linear_map(features, target.normalize(others[key].to(features.device)))  # type: ignore[operator]
            self.layers[key].weight.copy_(matrix.T)  # type: ignore[operator]
            self.layers[key].bias.copy_(shift)  # type: ignore[operator]

    def error(
        self, features: Mapping[str, Float[Tensor, "b steps _"]], others: Mapping[str, Float[Tensor, "b steps _"]]
    ) -> Float[Tensor, ""]:
        """Weighted sum of the layers' mean squared errors, in normalized units."""
        joined = torch.cat(list(features.values()), dim=-1)
        errors = [
            weight * nn.functional.mse_loss(self.layers[key](joined), self.targets[key].normalize(others[key]))  # type: ignore[operator]
            for key, weight in self.weights.items()
        ]
        return torch.stack(errors).sum()


def _policy_of(network: nn.Module) -> DiffusionPolicy:
    policy = network.policy if isinstance(network, AuxiliaryReadout) else network
    assert isinstance(policy, DiffusionPolicy)
    return policy


class _Denoising:
    def __init__(self, chunks: ActionChunkDataset, teacher: DiffusionPolicy | None, noise_draws: int) -> None:
        self.chunks, self.teacher, self.noise_draws = chunks, teacher, noise_draws

    def __call__(self, network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's prediction; see :func:`training_target`."""
        policy = _policy_of(network)
        scheduler: DDPMScheduler = policy.scheduler
        clean = policy.action_normalizer.normalize(self.chunks.actions[index]).repeat_interleave(self.noise_draws, 0)
        noise = torch.randn(clean.shape, generator=generator).to(policy.device)
        levels = scheduler.config.num_train_timesteps
        timestep = torch.randint(levels, (len(clean),), generator=generator).to(policy.device)
        noisy = scheduler.add_noise(clean, noise, timestep)
        features = self._features(policy, index, generator)
        played = self.chunks.actions if self.chunks.executed is None else self.chunks.executed
        prefix, lengths = self._prefix(policy, played[index], generator)
        cond = policy.condition(policy.insert_features(self.chunks.observations[index], features), prefix)
        cond = cond.repeat_interleave(self.noise_draws, 0)
        predicted = policy(noisy, timestep, cond)
        if self.teacher is None:
            target = training_target(scheduler, clean, noise, timestep)
        else:
            with torch.no_grad():
                target = self.teacher(noisy, timestep, cond).float()
        if policy.prefix is None or lengths is None:
            error = nn.functional.mse_loss(predicted.float(), target)
        else:  # what is known is not to be learned
            mask = policy.prefix.loss_mask(lengths, clean.shape[1]).repeat_interleave(self.noise_draws, 0)
            squares = nn.functional.mse_loss(predicted.float(), target, reduction="none") * mask
            error = squares.sum() / (mask.sum() * clean.shape[2])
        if isinstance(network, AuxiliaryReadout) and network.training:
            frames = self.chunks.frames[index]
            error = error + network.error(features, {key: self.chunks.others[key][frames] for key in network.weights})
        return error

    def _prefix(
        self, policy: DiffusionPolicy, played: Float[Tensor, "n time action"], generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor | None]:
        """Columns and lengths of prefixes, 0 … D equally often; None for a policy that takes none.

        A prefix is what was played, disturbances included: that is what moved the world, and what follows corrects.
        """
        layout = policy.prefix
        if layout is None:
            return None, None
        lengths = torch.randint(layout.max_delay + 1, (len(played),), generator=generator).to(played.device)
        known = played[:, layout.first : layout.first + layout.max_delay]
        return layout.columns(policy.action_normalizer.normalize(known), lengths), lengths

    def _features(self, policy: DiffusionPolicy, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Features of each camera, ``(n, steps, features)``; in training each image is cropped at its own place."""
        frames = self.chunks.frames[index]
        features = {}
        for key, images in self.chunks.images.items():
            encoded = policy.encoders.encode_batch(key, images[frames.flatten()].to(policy.device), generator)
            features[key] = encoded.view(*frames.shape, -1)
        return features


def train_policy(
    config: PolicyConfig,
    dataset: str | Path | Sequence[str | Path],
    settings: TrainingSettings,
    out: str | Path,
    device: str | torch.device = "cpu",
    validation_demos: int = 10,
    teacher: DiffusionPolicy | None = None,
    noise_draws: int = 1,
    auxiliary: Mapping[str, float] | None = None,
    filter_key: str | None = None,
    environment: Mapping[str, Any] | None = None,
    init: DiffusionPolicy | None = None,
    donor: DiffusionPolicy | None = None,
) -> DiffusionPolicy:
    """Train a policy, or finish a training that was interrupted.

    Args:
        config: shape of the policy.
        dataset: robomimic HDF5 file, or several, whose episodes are put together.
        settings: how to train.
        out: folder of the run; see :class:`TrainingLoop`.
        device: where to train.
        validation_demos: least number of validation episodes of each file; see :func:`read_demonstrations`.
        teacher: a policy to distil into this one, usually smaller; its normalizers are taken over. None: learn from the
            demonstrations alone.
        noise_draws: noises and timesteps for each pair in a step. The images of a pair are encoded once, so that more
            draws use a costly encoder better.
        auxiliary: vectors of the demonstrations that a linear layer is to read off the images' features, and the weight
            of its error; see :class:`AuxiliaryReadout`. The layer is no part of the policy.
        filter_key: mask of the demonstrations to use; see :func:`read_demonstrations`.
        environment: what the demonstrations' ``env_args`` must say; see :func:`check_environment`. None: anything.
        init: a policy of the same configuration to start from; its ``max_delay`` may be smaller, see
            :func:`~specpolicy.training.warm_start.widen_prefix`. None: start from random weights.
        donor: a policy that sees vectors of the demonstrations, whose denoiser to start from; see
            :func:`~specpolicy.training.warm_start.adopt_denoiser`. It takes a trained encoder, hence ``init``.

    Returns:
        The policy with averaged weights, which ``out`` holds too.

    Raises:
        DemonstrationError: the data cannot be used, or leave nothing to learn.
        OtherRunError: ``out`` holds another run.
        ResumeError: the state in ``out`` cannot be read.
        TrainingDiverged: the loss is no longer finite.
        ValueError: the teacher looks at other observations or predicts something else, or the scheduler's chain cannot
            be sampled; ``init`` or ``donor`` do not fit.
    """
    if init is not None and (
        replace(init.config, max_delay=config.max_delay) != config or init.config.max_delay > config.max_delay
    ):
        raise ValueError("init is a policy of another configuration; give the settings that it was trained with")
    if donor is not None and (init is None or not config.cameras):
        raise ValueError("a donor's denoiser takes a camera policy with a trained encoder: give init, too")
    if teacher is not None:
        config.check_interchangeable(teacher.config, "teacher")
    if auxiliary and not config.cameras:
        raise ValueError(f"auxiliary={dict(auxiliary)} is read off images, but the policy has no cameras")
    check_integer("noise_draws", noise_draws, 1)
    for key, weight in (auxiliary or {}).items():
        check_number(f"auxiliary.{key}", weight, least=0)
    # Delayed by d, a chunk is played d steps further; so far it has to reach past an episode's end.
    played = min(config.n_action_steps + config.max_delay, config.horizon - config.first_executed)
    horizons = (config.n_obs_steps, config.horizon, played)
    torch.manual_seed(settings.seed)
    policy = DiffusionPolicy(config)
    ReverseProcess.from_scheduler(policy.scheduler)  # a chain that cannot be sampled is refused before it is taught
    spec = policy.observations
    vectors = {key: dim for key, dim in spec.keys.items() if key not in spec.images}
    seen = [] if donor is None else [key for key in donor.config.observations if key not in vectors]
    others = sorted({*(auxiliary or ()), *seen})
    paths = [Path(dataset)] if isinstance(dataset, str | Path) else [Path(path) for path in dataset]
    sets = [
        read_demonstrations(path, vectors, validation_demos, spec.images, others, config.action_dim, filter_key)
        for path in paths
    ]
    warnings = [line for each in sets for line in check_environment(each, environment or {})]
    data = join_demonstrations(sets)
    stack: dict[str, Any] = {
        name: torch.cat([torch.from_numpy(getattr(episode, name)) for episode in data.train])
        for name in ("observations", "actions")
    }
    if teacher is None:
        policy.observation_normalizer = _observation_normalizer(policy, stack["observations"])
        policy.action_normalizer = MinMaxNormalizer.fit(stack["actions"])
    else:
        policy.observation_normalizer = deepcopy(teacher.observation_normalizer)
        policy.action_normalizer = deepcopy(teacher.action_normalizer)
    held_out = data.valid or data.train
    train, valid = cut_action_chunks(data.train, *horizons), cut_action_chunks(held_out, *horizons)
    for chunks, what in ((train, "learn from"), (valid, "validate on")):
        if not len(chunks):
            raise DemonstrationError(f"{data.place}: the 'taught' masks leave no action chunk to {what}")
    summaries = [line for each in sets for line in each.summary().splitlines()]
    for line in [*summaries, *_constant_coordinates(policy, data), *warnings]:
        _log.info(line)
    policy = policy.to(device)
    readout = None
    if auxiliary:
        targets = {key: MinMaxNormalizer.fit(train.others[key]) for key in auxiliary}
        readout = AuxiliaryReadout(policy, targets, auxiliary).to(device)
    if init is not None:
        policy.load_state_dict(widen_prefix(init, policy))
        if config.cameras:
            _start_from(policy, donor, readout, train, stack["observations"])
    objective = diffusion_objective(policy, train, valid, teacher, noise_draws, readout)
    digests = [file_digest(path) for path in paths]
    objective.identity.update(
        config=config.to_dict(),
        data={
            "sha256": digests if len(digests) > 1 else digests[0],
            "validation_demos": validation_demos,
            "filter_key": filter_key,
        },
    )
    for name, other in (("init", init), ("donor", donor)):
        if other is not None and other.folder is not None:
            objective.identity[name] = checkpoint_digest(other.folder)
    trained = _policy_of(TrainingLoop(readout or policy, objective, settings, Path(out)).run())
    seeds = [episode.seed for episode in data.train if episode.seed is not None]
    if seeds:
        write_seen_seeds(Path(out), seeds)
    return trained


def _start_from(
    policy: DiffusionPolicy,
    donor: DiffusionPolicy | None,
    readout: AuxiliaryReadout | None,
    train: ActionChunkDataset,
    vectors: Float[Tensor, "n dim"],
) -> None:
    """Fit to the encoder of ``policy`` what reads its features: the donor's denoiser and the auxiliary layers."""
    moments = encoded_moments(policy, vectors, train.images)
    if donor is not None:
        lengths = {key: dim for key, dim in policy.config.observations.items() if key not in policy.config.cameras}
        known = dict(zip(lengths, torch.split(vectors, list(lengths.values()), dim=-1), strict=True)) | dict(
            train.others
        )
        adopt_denoiser(policy, donor, moments, torch.cat([known[key] for key in donor.config.observations], dim=-1))
    if readout is not None:
        places = torch.cat(
            [torch.full((dim,), key in policy.config.cameras) for key, dim in policy.config.observations.items()]
        )
        readout.fit(moments[:, places.to(moments.device)], train.others)


def _observation_normalizer(policy: DiffusionPolicy, vectors: Float[Tensor, "n dim"]) -> MinMaxNormalizer:
    """The range of each vector's coordinates; features of images are left as they are."""
    low, high = (
        policy.insert_features(limit, {key: end * torch.ones(dim) for key, dim in policy.encoders.features.items()})
        for limit, end in ((vectors.amin(dim=0), -1), (vectors.amax(dim=0), 1))
    )
    return MinMaxNormalizer(low, high)


def _constant_coordinates(policy: DiffusionPolicy, data: DemonstrationSet) -> list[str]:
    """Write lines on the coordinates whose range is so narrow that they are centred and not scaled."""
    spec = policy.observations
    named = [f"{key}[{index}]" for key, dim in spec.keys.items() if key not in spec.images for index in range(dim)]
    observed = np.concatenate([episode.observations for episode in data.train])
    low, high = (end.astype(np.float64) for end in data.action_range)
    ranges = dict(zip(named, np.ptp(observed.astype(np.float64), axis=0).tolist(), strict=True))
    ranges |= {f"actions[{index}]": width for index, width in enumerate((high - low).tolist())}
    if wide := [name for name, width in ranges.items() if width > float(np.finfo(np.float32).max)]:
        raise DemonstrationError(f"{data.place}: {wide[0]} is spread wider than float32 can hold")
    narrow = [f"{name} ({width:.2g})" for name, width in ranges.items() if 0 < width <= SMALLEST_RANGE]
    still = [name for name, width in ranges.items() if width == 0]
    lines = []
    if narrow:
        lines.append(f"  taken as constant, since they vary by less than {SMALLEST_RANGE:g}: {', '.join(narrow)}")
    if still:
        lines.append(f"  constant in the data: {', '.join(still)}")
    return lines
