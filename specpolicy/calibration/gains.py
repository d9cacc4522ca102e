"""Fitting gains with one basis for all steps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.gains import Gains
from specpolicy.speculative.process import ReverseProcess

from .chains import RecordedChains, changes, sensitivity

_TINY = 1e-12


def fit_gains(
    process: ReverseProcess, chains: RecordedChains, *, rank: int | None = None, lags: int = 4, ridge: float = 0.02
) -> Gains:
    """Gains J_k = U diag(λ_k) Uᵀ that predict how x̂0 changes with the innovation.

    U are the eigenvectors of the squared covariances of change and innovation, summed over the steps with the weight
    that a miss there has for acceptance. Along each of them λ_k is a one-dimensional ridge regression of its own; a
    negative one is taken for noise and becomes 0.

    Args:
        process: the chain that was recorded.
        chains: of :func:`record_chains`.
        rank: keep so many directions, the weightiest first; None for all.
        lags: regress on changes over 1 … ``lags`` steps, those over l steps with weight 1/l².
        ridge: of the mean variance of the innovation's coordinates.

    Raises:
        ValueError: the chains are not of this process, or too short.
    """
    if chains.num_steps != process.num_steps or process.num_steps <= lags:
        raise ValueError(
            f"chains of {chains.num_steps} steps for a process of {process.num_steps}, with lags up to {lags}; record "
            "chains of this process, longer than the lags"
        )
    spread, covariance = _moments(process, chains, lags)
    mean_variance = spread.diagonal(dim1=1, dim2=2).mean(1) + _TINY
    slope = covariance / mean_variance[:, None, None]
    basis = _shared_basis((slope + slope.transpose(1, 2)) / 2 * _weight(process)[:, None, None])[:, :rank]
    along = torch.einsum("ir,kij,jr->kr", basis, covariance, basis)
    variance = torch.einsum("ir,kij,jr->kr", basis, spread, basis)
    values = along / (variance + ridge * variance.mean(1, keepdim=True) + _TINY)
    # Halves, as they are stored: what is judged is what will be read.
    return Gains(values.clamp(min=0).half().float(), basis.half().float().contiguous())


def _moments(
    process: ReverseProcess, chains: RecordedChains, lags: int
) -> tuple[Float[Tensor, "k d d"], Float[Tensor, "k d d"]]:
    """Σ δδᵀ and Σ yδᵀ of innovations δ and changes y at each step, pooled over the lags."""
    steps, _, d = chains.x0.shape
    spread, covariance = torch.zeros(steps, d, d), torch.zeros(steps, d, d)
    for lag in range(1, lags + 1):
        innovation, change = changes(process, chains, lag)
        spread[lag:] += innovation.transpose(1, 2) @ innovation / lag**2
        covariance[lag:] += change.transpose(1, 2) @ innovation / lag**2
    return spread, covariance


def _weight(process: ReverseProcess) -> Float[Tensor, " k"]:
    """How far a missed gain moves a step: its sensitivity times the noise that the state has just got."""
    weight = sensitivity(process).float() * process.sigma.float().roll(1)
    weight[0] = 0  # what a chain starts from is no innovation
    return weight


def _shared_basis(slopes: Float[Tensor, "k d d"]) -> Float[Tensor, "d d"]:
    """Orthonormal columns that diagonalize symmetric matrices as well as one basis can, the weightiest first."""
    energy = (slopes @ slopes).sum(0).double()
    return torch.linalg.eigh(energy)[1].flip(1).float()
