"""How many steps to draft from each position."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.round import ChainState
from specpolicy.utils.checks import shown


@runtime_checkable
class WindowSchedule(Protocol):
    """Says how many steps each chain drafts next, from what has happened so far and nothing else."""

    def __call__(self, state: ChainState) -> Int[Tensor, " n"]:
        """Return the steps to draft for n unfinished chains; 0 is a plain step of the target."""
        ...


@dataclass(frozen=True)
class AdaptiveWindow:
    """Window lengths adapted to the error of the last draft; no drafts at all where none would be accepted.

    Each round measures how far the drafter's x̂0 was from the target's, also a round that drafted nothing: the target's
    x̂0 at the present state is computed anyway. x̂0 along the chain is a martingale whose steps have about the size
    √ΔSNR, with ΔSNR = (b/σ)², so one distance predicts those at the coming steps, the probabilities 2Φ(−v/2) of
    accepting them, and their product. The window ends where that product falls below ``min_acceptance``.

    Measuring costs nothing: where no draft would be accepted, the chain is sampled with one row a step, as a sequential
    sampler does, and drafting begins again when the measured distance allows. Lengths depend on the past alone, so the
    sampler stays exact.

    Attributes:
        max_window: longest window, in steps.
        min_acceptance: least probability of acceptance with which a step is drafted, in (0, 1): about the cost of one
            more row as a share of a network evaluation. Small for a device that computes many rows at once, larger for
            a CPU.
        initial: length of the first round, when nothing has been compared yet.

    Raises:
        ValueError: ``max_window`` or ``initial`` is not a whole number of 1 or more, or ``min_acceptance`` is not in
            (0, 1).
    """

    max_window: int = 32
    min_acceptance: float = 0.1
    initial: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.max_window < 1 or self.initial < 1 or not 0 < self.min_acceptance < 1:
            raise ValueError(f"{self}: max_window and initial must be at least 1, and min_acceptance between 0 and 1")


Window = int | Sequence[int] | AdaptiveWindow
"""One length for the whole chain, one for each of its K positions, or lengths that adapt."""


class FixedSchedule:
    """A table of lengths, one for each position.

    Args:
        table: shape ``(K,)``, on the device of the chains.
    """

    def __init__(self, table: Int[Tensor, " k"]) -> None:
        self.table = table

    def __call__(self, state: ChainState) -> Int[Tensor, " n"]:
        """Look the positions up."""
        return self.table[state.k]


class AdaptiveSchedule:
    """:class:`AdaptiveWindow` for one process.

    Args:
        window: what is asked for.
        process: the chain, in any dtype.
        longest: steps that can be drafted from each position, shape ``(K,)``, on the device of the chains.
    """

    def __init__(self, window: AdaptiveWindow, process: ReverseProcess, longest: Int[Tensor, " k"]) -> None:
        self.window, self.longest = window, longest
        gain = torch.where(process.sigma > 0, process.b / process.sigma, 0.0).double().to(longest.device)
        self.gain = gain
        self.snr = torch.cat([gain.new_zeros(1), gain.square().cumsum(0)])

    def __call__(self, state: ChainState) -> Int[Tensor, " n"]:
        """Draft until the product of the predicted acceptance probabilities is below ``min_acceptance``.

        Raises:
            ValueError: the chains do not measure their drafts.
        """
        error, error_from = state.draft_x0_error, state.draft_x0_error_from
        if error is None or error_from is None:
            raise ValueError("these chains do not measure their drafts; start them with measure=True")
        k, last = state.k, state.last_eval_k.clamp(min=0)
        elapsed = (self.snr[last] - self.snr[error_from]).clamp(min=1e-300)
        pace = error / elapsed.sqrt()
        step = (k[:, None] + torch.arange(self.window.max_window, device=k.device)).clamp(max=len(self.gain) - 1)
        ahead = (self.snr[step] - self.snr[last][:, None]).clamp(min=0)
        distance = torch.where(ahead > 0, self.gain[step] * pace[:, None] * ahead.sqrt(), 0.0)
        probability = torch.special.erfc(distance / math.sqrt(8.0)).cumprod(dim=1)  # 2Φ(−v/2) = erfc(v/√8)
        length = (probability >= self.window.min_acceptance).sum(dim=1)
        length = torch.where(error.isinf(), torch.full_like(length, self.window.initial), length)
        return torch.minimum(length, self.longest[k])


def window_lengths(window: object, longest: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    """Tabulate a fixed window, never past the steps that have noise.

    Args:
        window: whole number of steps, at least 1, or a sequence of one for each position; longer than the chain is
            fine. numpy integers and arrays are taken as well.
        longest: steps that can be drafted from each position, shape ``(K,)``.

    Returns:
        Steps to draft from each position, shape ``(K,)``.

    Raises:
        ValueError: a length is below 1 or not whole, or the sequence does not have K entries.
    """
    expected = "expected a whole number of steps, or one for each step of the chain"
    if isinstance(window, str | bytes | bool):
        raise ValueError(f"window={shown(window)}; {expected}")
    try:
        try:
            lengths = torch.as_tensor(operator.index(window))  # type: ignore[arg-type]
        except TypeError:
            lengths = torch.as_tensor(window)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"window={shown(window)}; {expected}") from None
    lengths = lengths.to(longest.device)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool or lengths.ndim > 1:
        raise ValueError(f"window={shown(window)}; {expected}")
    if lengths.ndim and len(lengths) != len(longest):
        raise ValueError(
            f"window has {len(lengths)} entries for a chain of {len(longest)} steps; give one for each step"
        )
    if (lengths < 1).any():
        raise ValueError(f"window={shown(window)}; draft at least 1 step a round (for none, use SequentialSampler)")
    return torch.minimum(lengths.expand(len(longest)), longest)
