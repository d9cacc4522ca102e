"""The whole way from a folder of images to a trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from specpolicy.training import TrainingSettings
from specpolicy.training.loop import TrainingLoop

from .idx import DataError, read_images
from .lesson import image_lesson
from .saving import save_model


def train_image_model(
    make_network: Callable[[], Any],
    scheduler: DDPMScheduler,
    data: str | Path,
    settings: TrainingSettings,
    out: str | Path,
    device: str | torch.device = "cpu",
    identity: Mapping[str, Any] | None = None,
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

    Returns:
        The network with averaged weights, which ``out`` holds too.

    Raises:
        DataError: the images cannot be read, or are not of the network's size. ResumeError: ``out`` holds another run.
    """
    train, held_out = read_images(data, "train"), read_images(data, "t10k")
    torch.manual_seed(settings.seed)
    network = make_network().to(device)
    size, side = network.config.sample_size, tuple(train.pixels.shape[1:])
    if side != (size, size):
        raise DataError(f"the images in {data} are {side[0]} × {side[1]}; the network is made for {size} × {size}")
    lesson = image_lesson(scheduler, train, held_out, device, partial(save_model, scheduler), dict(identity or {}))
    return TrainingLoop(network, lesson, settings, Path(out)).run()
