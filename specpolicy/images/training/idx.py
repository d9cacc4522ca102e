"""Images and labels in the idx format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

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
