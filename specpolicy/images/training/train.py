"""The whole way from a folder of images to a trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from specpolicy.evaluation.provenance import checkpoint_digest
from specpolicy.images.pipelines import ModelError, load_pipeline, network_of
from specpolicy.training import TrainingSettings
from specpolicy.training.loop import TrainingLoop

from .idx import DataError, read_images
from .lesson import image_lesson
from .saving import save_model

_LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""What teacher and pupil must agree on: the noise levels, and what is predicted."""


def train_image_model(
    make_network: Callable[[], Any],
    scheduler: DDPMScheduler,
    data: str | Path,
    settings: TrainingSettings,
    out: str | Path,
    device: str | torch.device = "cpu",
    identity: Mapping[str, Any] | None = None,
    teacher: str | Path | None = None,
) -> nn.Module:
    """Train a network, or finish a training that was interrupted.

    Args:
        make_network: makes a ``UNet2DModel`` or a ``DiTTransformer2DModel`` for images of one channel.
        scheduler: the noise levels, and what the network predicts.
        data: folder of idx files; see :func:`read_images`. ``t10k`` is held out.
        settings: how to train.
        out: folder of the run, and of the model; see :class:`TrainingLoop` and :func:`save_model`.
        device: where to train.
        identity: in plain types, what network and scheduler were made from: a run is not resumed with others.
        teacher: folder of a pipeline whose predictions are learned instead of the data's, by a network that is to
            draft for it; see :func:`image_lesson`.

    Returns:
        The network with averaged weights, which ``out`` holds too.

    Raises:
        DataError: the images cannot be read, or are not of the network's size. ResumeError: ``out`` holds another run.
        ModelError: there is no teacher, or its noise levels or predictions are others.
    """
    train, held_out = read_images(data, "train"), read_images(data, "t10k")
    torch.manual_seed(settings.seed)
    network = make_network().to(device)
    size, side = network.config.sample_size, tuple(train.pixels.shape[1:])
    if side != (size, size):
        raise DataError(f"the images in {data} are {side[0]} × {side[1]}; the network is made for {size} × {size}")
    told = dict(identity or {})
    master = None
    if teacher is not None:
        master, told["teacher"] = _teacher(teacher, scheduler, device), checkpoint_digest(teacher)
    lesson = image_lesson(scheduler, train, held_out, device, partial(save_model, scheduler), told, master)
    return TrainingLoop(network, lesson, settings, Path(out)).run()


def _teacher(folder: str | Path, scheduler: DDPMScheduler, device: str | torch.device) -> nn.Module:
    pipeline = load_pipeline(folder, str(device))
    theirs, ours = pipeline.scheduler.config, scheduler.config
    differ = {name: (theirs.get(name), ours[name]) for name in _LEVELS if theirs.get(name) != ours[name]}
    if differ:
        raise ModelError(
            f"the teacher at {folder} was taught otherwise (its, asked for): {differ}; give the same scheduler"
        )
    return network_of(pipeline).requires_grad_(False).eval()
