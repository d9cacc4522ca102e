"""Reading idx files, and saying what is wrong with them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_dataset, write_idx

from benchmarks.images.training import DataError, read_idx, read_images


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_was_written_is_read(tmp_path: Path, suffix: str) -> None:
    array = np.random.default_rng(0).integers(256, size=(5, 3, 4)).astype(np.uint8)
    assert np.array_equal(read_idx(write_idx(tmp_path / f"file{suffix}", array), 3), array)


def test_images_and_labels_belong_together(tmp_path: Path) -> None:
    data = read_images(write_dataset(tmp_path / "data"), "train")
    assert len(data) == 40 and data.pixels.shape == (40, 8, 8)
    for image, label in zip(data.pixels, data.labels, strict=True):
        top, left = divmod(int(label), 2)
        assert (image[4 * top : 4 * top + 4, 4 * left : 4 * left + 4] == 200).all() and (image > 0).sum() == 16


def _cut(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def _fewer(path: Path) -> None:
    write_idx(path, np.zeros((3, 8, 8), np.uint8))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (Path.unlink, "Debian has them in the package dataset-fashion-mnist"),
        (lambda path: path.write_bytes(b"not gzip"), "cannot be read .* fetch it again"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read .* fetch it again"),
        (lambda path: path.write_bytes(gzip.compress(b"\x89PNG")), "begins with 89 50 4e 47, expected 00 00 08 03"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "begins with nothing"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03\0")), "is damaged"),
        (_cut, "damaged: 2559 bytes of data, expected 2560"),
        (_fewer, "3 images and 40 labels"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    folder = write_dataset(tmp_path / "data")
    spoil(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=says) as error:
        read_images(folder, "train")
    assert "train" in str(error.value)
