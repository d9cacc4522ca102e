"""Sets of images: drawn batch by batch and kept as they come, set against held-out ones, and shown on a sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.images.sampling import image_grid
from benchmarks.images.tables import distances
from benchmarks.images.training import read_images
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

SEED = 500_000
BATCH = 16
SHOWN = 12  # images of each set on the sheet

Draw = Callable[[list[int]], Tensor]
"""From seeds to as many images in [−1, 1], shape ``(n, 1, height, width)``."""


def draw_sets(ways: Mapping[str, Draw], images: int, work: Path, key: str, paired: bool = False) -> dict[str, Tensor]:
    """Images of every way.

    Args:
        ways: how to draw, by name. images: of each set.
        work: where batches are kept, under ``key``, for a run that goes on later.
        paired: every set is of the same seeds; otherwise no two sets share one.
    """
    work.mkdir(parents=True, exist_ok=True)
    sets: dict[str, Tensor] = {}
    with progress_bar("images", len(ways) * images) as bar:
        for offset, (name, draw) in enumerate(ways.items()):
            parts = []
            for first in range(0, images, BATCH):
                part = work / f"{key}-{name.replace(' ', '-')}-{first:05d}.pt"
                if not part.is_file():
                    begin = SEED + 100_000 * (1 if paired else offset + 1) + first
                    sample = draw(list(range(begin, begin + BATCH))).cpu()
                    with atomic_path(part) as temporary:
                        torch.save(sample.clamp(-1, 1), temporary)
                parts.append(torch.load(part, weights_only=True))
                bar.advance(BATCH)
            sets[name] = torch.cat(parts)[:images]
    return sets


def compare_sets(
    sets: Mapping[str, Tensor], data: str, sheet: Path, work: Path, device: str = "cpu", paired: bool = False
) -> dict[str, Any]:
    """How far each set is from held-out images and from the first set, and a sheet of all.

    Args:
        sets: of :func:`draw_sets`. data: folder of the idx files; its ``t10k`` part is held out.
        sheet: image file to write. work: for files on the way. device: where features are computed.
        paired: as for :func:`draw_sets`.
    """
    from benchmarks.images.distance import ImageNetFeatures

    features, images = ImageNetFeatures(device=device), len(next(iter(sets.values())))
    held_out = read_images(data, "t10k").pixels
    real = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))]
    reference, unseen = (each[:, None] / 127.5 - 1 for each in (real[: 8 * images], real[8 * images : 9 * images]))
    with progress_bar("features", len(sets) + 2) as bar:
        measured = {}
        for name, each in {"reference": reference, "held out": unseen, **sets}.items():
            measured[name] = features(each)
            bar.advance()
    draw_sheet({**sets, "held out": unseen}, sheet, work)
    return distances(measured, baseline=next(iter(sets)), paired=paired)


def draw_sheet(sets: Mapping[str, Tensor], out: Path, work: Path) -> None:
    """The first images of each set."""
    rows: dict[str, list[Path]] = {}
    for name, images in sets.items():
        for number, image in enumerate(images[:SHOWN]):
            file = work / f"{name.replace(' ', '-')}-{number}.png"
            pixels = ((image[0] + 1) * 127.5).round().clamp(0, 255).byte().numpy()
            Image.fromarray(pixels).save(file)
            rows.setdefault(name, []).append(file)
    with atomic_path(out) as temporary:
        image_grid(rows, least=56).convert("L").save(temporary, format="png", optimize=True)  # gray as they are
