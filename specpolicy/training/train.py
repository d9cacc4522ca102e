"""The whole way from a demonstration file to a trained policy."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from specpolicy.policies import DiffusionPolicy, MinMaxNormalizer, PolicyConfig
from specpolicy.policies.seen import write_seen_seeds

from .chunks import cut_chunks
from .demonstrations import read_demonstrations
from .lesson import policy_lesson
from .loop import TrainingLoop, TrainingSettings


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
    horizons = (config.observation_horizon, config.action_horizon, config.executed_actions)
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
    lesson = policy_lesson(policy, cut_chunks(data.train, *horizons), cut_chunks(held_out, *horizons), teacher)
    trained = TrainingLoop(policy, lesson, settings, Path(out)).run()
    assert isinstance(trained, DiffusionPolicy)
    seeds = [episode.seed for episode in data.train if episode.seed is not None]
    if seeds:
        write_seen_seeds(Path(out), seeds)
    return trained
