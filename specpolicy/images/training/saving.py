"""Image networks on disk, in diffusers' own format."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel
from torch import nn

from specpolicy.images.pixels import PixelDiTPipeline


def save_model(scheduler: DDPMScheduler, network: nn.Module, folder: Path) -> None:
    """Write a network with its scheduler so that a kill at any moment leaves the old or the new weights.

    A ``UNet2DModel`` becomes a ``DDPMPipeline`` that diffusers reads without this library. diffusers has no pipeline
    for a transformer in pixel space: a ``DiTTransformer2DModel`` becomes a :class:`PixelDiTPipeline`, whose folders
    ``transformer`` and ``scheduler`` are what those classes of diffusers read.
    """
    staged = folder / ".saving"
    shutil.rmtree(staged, ignore_errors=True)
    kind = PixelDiTPipeline if isinstance(network, DiTTransformer2DModel) else DDPMPipeline
    kind(network, scheduler).save_pretrained(staged)
    for file in sorted(staged.rglob("*")):
        if file.is_file():
            target = folder / file.relative_to(staged)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
    shutil.rmtree(staged)
