"""How many steps to draft from each position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from specpolicy.speculative.chain_batch import ChainBatch
from specpolicy.speculative.process import ReverseProcess


@runtime_checkable
class WindowSchedule(Protocol):
    """Says how many steps each chain drafts next. It may look at all that has happened, and at nothing else."""

    def __call__(self, chains: ChainBatch, active: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Steps to draft for the chains ``active``, from where they are; 0 is a plain step of the target."""
        ...


@dataclass(frozen=True)
class AdaptiveWindow:
    """Drafts as far as the last comparison of draft and target gives hope, and not at all where it gives none.

    Each round measures how far the drafter's x̂0 was from the target's, also a round that drafted nothing: the
    target's x̂0 at the present state is computed anyway. x̂0 along the chain is a martingale whose steps have about
    the size √ΔSNR, with ΔSNR = (b/σ)², so from one distance follow those at the coming steps, the chances
    2Φ(−v/2) of keeping them, and their product. The window ends where that product falls below ``worth``.

    Nothing is spent on finding out: where no draft has hope the chain is sampled with one row a step, as a
    sequential sampler does, and drafting begins again when the measured distance allows. Lengths depend on the past
    alone, so that the sampler stays exact.

    Attributes:
        max_window: longest window.
        min_acceptance: least probability of acceptance with which a step is drafted, in (0, 1): about the cost of one
            more row as a share of a pass. Small for a device that computes many rows at once, larger for a CPU.
        initial: length of the first round if nothing has been compared yet.

    Raises:
        ValueError: ``most`` or ``first`` is below 1, or ``worth`` is not in (0, 1).
    """

    max_window: int = 32
    min_acceptance: float = 0.1
    initial: int = 1

    def __post_init__(self) -> None:
        if self.max_window < 1 or self.initial < 1 or not 0 < self.min_acceptance < 1:
            raise ValueError(f"{self}: most and first must be at least 1, and worth between 0 and 1")


Window = int | Sequence[int] | AdaptiveWindow
"""One length for the whole chain, one for each of its K positions, or lengths that adapt."""


class FixedSchedule:
    """A table of lengths, one for each position."""

    def __init__(self, table: Int[Tensor, " k"]) -> None:
        self.table = table

    def __call__(self, chains: ChainBatch, active: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Look the positions up."""
        return self.table[chains.k[active]]


class AdaptiveSchedule:
    """:class:`AdaptiveWindow` for one process.

    Args:
        window: what is asked for. process: in any dtype.
        reach: how many steps can be drafted from each position, on the device of the chains.
    """

    def __init__(self, window: AdaptiveWindow, process: ReverseProcess, reach: Int[Tensor, " k"]) -> None:
        self.window, self.reach = window, reach
        gain = torch.where(process.sigma > 0, process.b / process.sigma, 0.0).double().to(reach.device)
        self.gain = gain
        self.clock = torch.cat([gain.new_zeros(1), gain.square().cumsum(0)])

    def __call__(self, chains: ChainBatch, active: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """As far as the product of the chances is worth it."""
        if chains.draft_x0_error is None:
            raise ValueError("these chains do not measure their drafts; make them with measure=True")
        k, anchor = chains.k[active], chains.last_eval_k[active]
        draft_x0_error, begin = chains.draft_x0_error[active], chains.draft_x0_error_from[active]
        elapsed = (self.clock[anchor.clamp(min=0)] - self.clock[begin]).clamp(min=1e-300)
        pace = draft_x0_error / elapsed.sqrt()
        step = (k[:, None] + torch.arange(self.window.max_window, device=k.device)).clamp(max=len(self.gain) - 1)
        ahead = (self.clock[step] - self.clock[anchor.clamp(min=0)][:, None]).clamp(min=0)
        distance = torch.where(ahead > 0, self.gain[step] * pace[:, None] * ahead.sqrt(), 0.0)
        chance = torch.special.erfc(distance / math.sqrt(8.0)).cumprod(dim=1)  # 2Φ(−v/2) = erfc(v/√8)
        length = (chance >= self.window.min_acceptance).sum(dim=1)
        length = torch.where(draft_x0_error.isinf(), torch.full_like(length, self.window.initial), length)
        return torch.minimum(length, self.reach[k])


def window_lengths(window: object, reach: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    """Steps to draft from each position, never past the steps that have noise.

    Args:
        window: a fixed :data:`Window`: at least 1 everywhere, longer than the chain is fine.
        reach: how many steps can be drafted from each position.

    Raises:
        ValueError: a length is below 1, or the sequence does not have K entries.
    """
    lengths = torch.as_tensor(window, device=reach.device)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"window={window!r}; it must be a whole number of steps")
    if lengths.ndim and len(lengths) != len(reach):
        raise ValueError(f"window has {len(lengths)} entries for a chain of {len(reach)} steps; give one for each step")
    if (lengths < 1).any():
        raise ValueError(f"window={window!r}; draft at least 1 step a round (for none, use SequentialSampler)")
    return torch.minimum(lengths.expand(len(reach)), reach)
