"""The whole way from a folder of images to a trained network."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from benchmarks.images.pixels import PixelDiTPipeline
from benchmarks.images.sampling import ModelError, load_pipeline, network_of
from specpolicy.training.loop import Save, TrainingLoop, TrainingObjective, TrainingSettings
from specpolicy.training.train import training_target
from specpolicy.utils.digests import checkpoint_digest

UNSIGNED_BYTES = 0x08


class DataError(ValueError):
    """Images cannot be read; the message names the file and what was expected."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one channel with the class of each.

    Attributes:
        pixels: 0 to 255. labels: from 0.
    """

    pixels: UInt8[Tensor, "n height width"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.pixels)


def read_images(folder: str | Path, part: str) -> LabelledImages:
    """Read ``<part>-images-idx3-ubyte`` and ``<part>-labels-idx1-ubyte``, gzipped or not.

    Args:
        folder: holds the files under their published names. part: ``"train"`` or ``"t10k"``.

    Raises:
        DataError: a file is missing, is no idx file of bytes, is cut short, or the two do not belong together.
    """
    pixels = read_idx(_find(Path(folder), f"{part}-images-idx3-ubyte"), 3)
    labels = read_idx(_find(Path(folder), f"{part}-labels-idx1-ubyte"), 1)
    if len(pixels) != len(labels) or not len(pixels):
        raise DataError(f"{folder}: {len(pixels)} images and {len(labels)} labels in {part!r}; they must be as many")
    return LabelledImages(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes: two zeros, the type, the number of dimensions, their sizes (big-endian), the data.

    Raises:
        DataError: it is none, has other dimensions, or is cut short.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES or content[3] != dimensions:
        raise DataError(
            f"{path} is not an idx file of unsigned bytes with {dimensions} dimension{'s' * (dimensions > 1)}: it "
            f"begins with {content[:4].hex(' ') or 'nothing'}, expected 00 00 08 {dimensions:02x}"
        )
    begin = 4 + 4 * dimensions
    sizes = struct.unpack(f">{dimensions}I", content[4:begin]) if len(content) >= begin else ()
    wanted = int(np.prod(sizes, dtype=np.int64)) if sizes else -1
    if len(content) - begin != wanted:
        raise DataError(f"{path} is damaged: {len(content) - begin} bytes of data, expected {wanted} for {sizes}")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(sizes).copy()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(
        f"no {name}.gz in {folder}; data= must be a folder with the four files of Fashion-MNIST (or MNIST) under their "
        "published names. Debian has them in the package dataset-fashion-mnist: "
        "`apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb datasets` puts them into "
        "datasets/usr/share/datasets/fashion-mnist, without being installed"
    )


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


def image_lesson(
    scheduler: DDPMScheduler,
    train: LabelledImages,
    held_out: LabelledImages,
    device: torch.device | str,
    save: Save,
    identity: dict[str, Any],
    teacher: nn.Module | None = None,
) -> TrainingObjective:
    """Denoise images at all of the scheduler's noise levels, or predict what a teacher predicts there.

    The levels of a batch are spread evenly over the chain from one random offset (Kingma et al. 2021, appendix I.1),
    which takes some of the noise out of the gradient. So does a ``teacher`` (Hinton et al. 2015), which answers with a
    mean where the data hold single draws; the losses, the validation's too, are then distances from its answers. It is
    given the classes if it takes any.
    """
    return TrainingObjective(
        examples=len(train),
        loss=_Denoising(scheduler, train, device, teacher),
        held_out=len(held_out),
        validation=_Denoising(scheduler, held_out, device, teacher),
        save=save,
        identity=identity,
    )


class _Denoising:
    def __init__(
        self,
        scheduler: DDPMScheduler,
        images: LabelledImages,
        device: torch.device | str,
        teacher: nn.Module | None,
    ) -> None:
        self.scheduler, self.images, self.device, self.teacher = scheduler, images, device, teacher

    def __call__(self, network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's prediction; see :func:`training_target`."""
        labels = self.images.labels[index].to(self.device)
        clean = scaled(self.images.pixels[index]).to(self.device)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        levels = self.scheduler.config.num_train_timesteps
        spread = (torch.rand(1, generator=generator) + torch.arange(len(index)) / len(index)) % 1.0
        timestep = (spread * levels).long().clamp(max=levels - 1).to(self.device)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        if self.teacher is None:
            target = training_target(self.scheduler, clean, noise, timestep)
        else:
            with torch.no_grad():
                target = predict(self.teacher, noisy, timestep, labels).float()
        return nn.functional.mse_loss(predict(network, noisy, timestep, labels).float(), target)


def scaled(pixels: Tensor) -> Float[Tensor, "n 1 height width"]:
    """Bytes as the network sees them: one channel, in [−1, 1]."""
    return pixels[:, None].float() / 127.5 - 1.0


def predict(network: nn.Module, noisy: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
    """What a network answers; it is told the class of each image if it wants it."""
    given = {"class_labels": labels} if isinstance(network, DiTTransformer2DModel) else {}
    return network(noisy, timestep, **given, return_dict=False)[0]


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
        DataError: the images cannot be read, or are not of the network's size.
        OtherRunError: ``out`` holds another run.
        ModelError: there is no teacher, or its noise levels or predictions are others.
    """
    train, held_out = read_images(data, "train"), read_images(data, "t10k")
    torch.manual_seed(settings.seed)
    network = make_network().to(device)
    size, side = network.config.sample_size, tuple(train.pixels.shape[1:])
    if side != (size, size):
        raise DataError(f"the images in {data} are {side[0]} × {side[1]}; the network is made for {size} × {size}")
    told = {**(identity or {}), "data": _digest(train, held_out)}
    master = None
    if teacher is not None:
        master, told["teacher"] = _teacher(teacher, scheduler, device), checkpoint_digest(teacher)
    lesson = image_lesson(scheduler, train, held_out, device, partial(save_model, scheduler), told, master)
    return TrainingLoop(network, lesson, settings, Path(out)).run()


def _digest(*sets: LabelledImages) -> str:
    """Tell images from others by their content."""
    digest = hashlib.sha256()
    for images in sets:
        digest.update(images.pixels.contiguous().numpy().data)
        digest.update(images.labels.contiguous().numpy().data)
    return digest.hexdigest()


def _teacher(folder: str | Path, scheduler: DDPMScheduler, device: str | torch.device) -> nn.Module:
    pipeline = load_pipeline(folder, str(device))
    theirs, ours = pipeline.scheduler.config, scheduler.config
    differ = {name: (theirs.get(name), ours[name]) for name in _LEVELS if theirs.get(name) != ours[name]}
    if differ:
        raise ModelError(
            f"the teacher at {folder} was taught otherwise (its, asked for): {differ}; give the same scheduler"
        )
    return network_of(pipeline).requires_grad_(False).eval()
