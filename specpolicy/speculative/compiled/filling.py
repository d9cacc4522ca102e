"""Batches in few sizes: filled up with chains that have nothing to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoiser import Cond, gather_rows


def check_sizes(sizes: Sequence[int] | None) -> list[int] | None:
    """A list of its own.

    Raises:
        ValueError: not rising numbers from 1 on.
    """
    if sizes is None:
        return None
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"batches={list(sizes)}; expected rising batch sizes from 1 on, such as [1, 4, 16]")
    return list(sizes)


def filled(noise: Tensor, cond: Cond, sizes: Sequence[int] | None) -> tuple[Tensor, Cond]:
    """Both with as many rows as the least of ``sizes`` that is enough; larger batches, and None, stay as they are.

    The rows that are added repeat the first one, which is something that the network can be asked about.
    """
    here = len(noise)
    size = next((size for size in sizes or () if size >= here), here)
    if size == here or here == 0:
        return noise, cond
    row = torch.arange(size, device=noise.device)
    row = torch.where(row < here, row, 0)
    return noise[row], gather_rows(cond, row)


def padded(numbers: Tensor, rows: int) -> Tensor:
    """Numbers of the first chains, and zeros for those that fill the batch up to ``rows``."""
    return torch.cat([numbers, numbers.new_zeros((rows - len(numbers), *numbers.shape[1:]))])


def powers_up_to(most: int) -> list[int]:
    """1, 2, 4 and so on, and ``most``: no batch up to it is more than doubled."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
