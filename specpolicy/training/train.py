"""The whole way from a demonstration file to a trained policy."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from specpolicy.datasets.action_chunks import ActionChunkDataset, cut_action_chunks
from specpolicy.datasets.robomimic import read_demonstrations
from specpolicy.policies.checkpoint import checkpoint_digest, write_seen_seeds
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.training.loop import TrainingLoop, TrainingObjective, TrainingSettings


def training_target(scheduler: DDPMScheduler, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """The prediction that gives ``clean`` back, by the scheduler's ``prediction_type``.

    Noise ε (Ho et al. 2020, equation 14), x0 itself, or velocity √ᾱ ε − √(1−ᾱ) x0 (Salimans and Ho 2022).

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
) -> TrainingObjective:
    """Denoise action chunks under their observations, at all noise levels, or predict what a teacher predicts there.

    A ``teacher`` (Hinton et al. 2015) answers with a mean where demonstrations hold single draws, which takes noise out
    of the gradient. It must scale as the policy does.

    Raises:
        ValueError: the teacher is of no checkpoint, by which a resumed training would know it again.
    """
    if teacher is not None and teacher.folder is None:
        raise ValueError("the teacher was not loaded from a checkpoint: save it first, and load it from there")
    return TrainingObjective(
        examples=len(train),
        loss=_Denoising(train.to(policy.device), teacher),
        held_out=len(valid),
        validation=_Denoising(valid.to(policy.device), teacher),
        save=lambda network, folder: network.save_pretrained(folder),  # type: ignore[operator]
        identity={} if teacher is None or teacher.folder is None else {"teacher": checkpoint_digest(teacher.folder)},
    )


class _Denoising:
    def __init__(self, chunks: ActionChunkDataset, teacher: DiffusionPolicy | None) -> None:
        self.chunks, self.teacher = chunks, teacher

    def __call__(self, network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's prediction; see :func:`training_target`."""
        assert isinstance(network, DiffusionPolicy)
        scheduler: DDPMScheduler = network.scheduler
        clean = network.action_normalizer.normalize(self.chunks.actions[index])
        noise = torch.randn(clean.shape, generator=generator).to(network.device)
        levels = scheduler.config.num_train_timesteps
        timestep = torch.randint(levels, (len(clean),), generator=generator).to(network.device)
        noisy = scheduler.add_noise(clean, noise, timestep)
        cond = network.condition(self.chunks.observations[index])
        predicted = network(noisy, timestep, cond)
        if self.teacher is None:
            target = training_target(scheduler, clean, noise, timestep)
        else:
            with torch.no_grad():
                target = self.teacher(noisy, timestep, cond).float()
        return nn.functional.mse_loss(predicted.float(), target)


def train_policy(
    config: PolicyConfig,
    dataset: str | Path,
    settings: TrainingSettings,
    out: str | Path,
    device: str | torch.device = "cpu",
    validation_demos: int = 10,
    teacher: DiffusionPolicy | None = None,
) -> DiffusionPolicy:
    """Train a policy, or finish a training that was interrupted.

    Args:
        config: shape of the policy.
        dataset: robomimic HDF5 file.
        settings: how to train.
        out: folder of the run; see :class:`TrainingLoop`.
        device: where to train.
        validation_demos: episodes held out.
        teacher: a policy to distil into this one, usually smaller; its normalizers are taken over. None: learn from the
            demonstrations alone.

    Returns:
        The policy with averaged weights, which ``out`` holds too.

    Raises:
        DemonstrationError: the data cannot be used. ResumeError: ``out`` holds a different run.
        ValueError: the teacher looks at other observations or predicts something else.
    """
    if teacher is not None:
        config.check_interchangeable(teacher.config, "teacher")
    data = read_demonstrations(dataset, config.observations, validation_demos)
    horizons = (config.n_obs_steps, config.horizon, config.n_action_steps)
    torch.manual_seed(settings.seed)
    policy = DiffusionPolicy(config)
    stack: dict[str, Any] = {
        name: torch.cat([torch.from_numpy(getattr(episode, name)) for episode in data.train])
        for name in ("observations", "actions")
    }
    if teacher is None:
        policy.observation_normalizer = MinMaxNormalizer.fit(stack["observations"])
        policy.action_normalizer = MinMaxNormalizer.fit(stack["actions"])
    else:
        policy.observation_normalizer = deepcopy(teacher.observation_normalizer)
        policy.action_normalizer = deepcopy(teacher.action_normalizer)
    held_out = data.valid or data.train
    policy = policy.to(device)
    lesson = diffusion_objective(
        policy, cut_action_chunks(data.train, *horizons), cut_action_chunks(held_out, *horizons), teacher
    )
    trained = TrainingLoop(policy, lesson, settings, Path(out)).run()
    assert isinstance(trained, DiffusionPolicy)
    seeds = [episode.seed for episode in data.train if episode.seed is not None]
    if seeds:
        write_seen_seeds(Path(out), seeds)
    return trained
