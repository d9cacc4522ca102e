"""Fitting what stands in for x̂0 before the first pass, and choosing among the fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.opening import KernelOpening, LinearOpening, Opening, ZeroOpening, neighbourhood
from specpolicy.speculative.process import ReverseProcess

from .chains import RecordedChains, sensitivity

FIRST_WINDOW = 0.4
"""Share of the chain that an opening is to draft well; about what the first round covers."""

Fit = Callable[[ReverseProcess, RecordedChains], Opening]


class OpeningChoice(NamedTuple):
    """The chosen way to fit an opening, and how all of them did on chains that they were not fitted on."""

    name: str
    fit: Fit
    held_out: dict[str, float]


def fit_opening(process: ReverseProcess, chains: RecordedChains, most_centres: int = 2000) -> OpeningChoice:
    """Choose between zero, linear and kernel regressions by their error on held-out groups.

    Args:
        process: the chain that was recorded. chains: of :func:`record_chains`.
        most_centres: conditions that a kernel regression may keep; 0 tries none.

    Returns:
        The choice; its ``fit`` makes the opening from any recorded chains.
    """
    candidates: dict[str, Fit] = {"zero": lambda *_: ZeroOpening()}
    candidates |= {f"linear, ridge {ridge:g}": partial(fit_linear, ridge=ridge) for ridge in (1e-3, 1e-2, 1e-1)}
    for length, ridge in product((0.3, 0.5, 1.0), (0.1, 0.5)) if most_centres > 0 else ():
        kernel = partial(fit_kernel, length=length, ridge=ridge, most_centres=most_centres)
        candidates[f"kernel, length {length:g}, ridge {ridge:g}"] = kernel
    fitted_on, judged_by = chains.split(seed=1)
    held_out = {name: opening_error(process, fit(process, fitted_on), judged_by) for name, fit in candidates.items()}
    best = min(held_out, key=held_out.__getitem__)
    return OpeningChoice(best, candidates[best], held_out)


def fit_linear(process: ReverseProcess, chains: RecordedChains, ridge: float = 1e-3) -> LinearOpening:
    """Ridge regression of x̂0 on the condition; ``ridge`` is relative to the variance of a condition's numbers."""
    mean, scale = chains.cond.mean(0), chains.cond.std(0).clamp(min=1e-2)
    z = ((chains.cond - mean) / scale).double()
    target = early_x0(process, chains).double()
    centre = target.mean(0)
    slope = torch.linalg.solve(z.T @ z + ridge * len(z) * torch.eye(z.shape[1]), z.T @ (target - centre))
    weight = (slope / scale[:, None]).T
    return LinearOpening(weight.float().contiguous(), (centre - weight @ mean.double()).float())


def fit_kernel(
    process: ReverseProcess, chains: RecordedChains, length: float = 0.5, ridge: float = 0.1, most_centres: int = 2000
) -> KernelOpening:
    """Kernel ridge regression of what a linear one leaves.

    Args:
        process: the chain that was recorded. chains: of :func:`record_chains`.
        length: of the kernel, in standard deviations of a condition's numbers times the root of their count.
        ridge: relative to the kernel at distance 0.
        most_centres: keep so many of the chains' conditions, the first ones.
    """
    linear = fit_linear(process, chains)
    spread = chains.cond.std(0).clamp(min=1e-2)
    scale = 1 / (spread * length * chains.cond.shape[1] ** 0.5)
    # Halves, as they are stored: what rounding moves, the weights can make good.
    centres = (chains.cond[:most_centres] * scale).half().float()
    left = early_x0(process, chains) - linear.x0(chains.x0[0], chains.cond)
    kernel = neighbourhood(centres, centres).double() + ridge * torch.eye(len(centres))
    weights = torch.linalg.solve(kernel, left[:most_centres].double()).half().float()
    return KernelOpening(linear, scale, centres, weights)


def opening_error(process: ReverseProcess, opening: Opening, chains: RecordedChains) -> float:
    """Root of Σ v_k² over the first window, averaged over chains; v is the miss in standard deviations of the step.

    Half of its square is the information by which drafts under the opening's x̂0 differ from the target's steps.
    """
    weight = _window_weight(process)
    miss = opening.x0(chains.x0[0], chains.cond) - chains.x0[: len(weight)]
    return float((weight[:, None] * miss.square().sum(-1)).sum(0).mean().sqrt())


def early_x0(process: ReverseProcess, chains: RecordedChains) -> Float[Tensor, "n d"]:
    """The constant x̂0 that is nearest to a chain's own over the first window.

    The network's value at pure noise will not do: there it is the least accurate, and predicts later ones worse.
    """
    weight = _window_weight(process)
    return torch.einsum("k,knd->nd", weight / weight.sum(), chains.x0[: len(weight)])


def _window_weight(process: ReverseProcess) -> Float[Tensor, " w"]:
    return sensitivity(process)[: max(1, round(FIRST_WINDOW * process.num_steps))].float().square()
