"""Fits a calibration to recorded chains, and measures its errors on chains that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specpolicy.calibration.store import Calibration
from specpolicy.speculative.drafters.linear import X0Jacobian
from specpolicy.speculative.initial_guess import LinearGuess, X0Guess, ZeroGuess
from specpolicy.speculative.linear_chain import MultiStepTransition
from specpolicy.speculative.process import ReverseProcess


@dataclass(frozen=True)
class RecordedChains:
    """N sequential chains of K steps, events flattened to d numbers.

    Attributes:
        states: x_0 … x_K, shape ``(K + 1, N, d)``.
        x0: the network's x̂0 at the first K of them, shape ``(K, N, d)``.
        cond: their conditions, shape ``(N, c)``.
        group: whole numbers; chains of one group have conditions that resemble each other (one episode, or one and the
            same observation) and are never on both sides of a split. Shape ``(N,)``.
    """

    states: Float[Tensor, "k1 n d"]
    x0: Float[Tensor, "k n d"]
    cond: Float[Tensor, "n c"]
    group: Int[Tensor, " n"]

    def __len__(self) -> int:
        """Return N."""
        return len(self.cond)

    @property
    def num_steps(self) -> int:
        """K, the steps of the chains."""
        return len(self.x0)

    @property
    def num_groups(self) -> int:
        """Number of different groups."""
        return len(torch.unique(self.group))

    def where(self, kept: Bool[Tensor, " n"]) -> RecordedChains:
        """Select chains.

        Args:
            kept: mask, shape ``(N,)``.

        Returns:
            Those where it is true.
        """
        return RecordedChains(self.states[:, kept], self.x0[:, kept], self.cond[kept], self.group[kept])

    def split(self, share: float = 0.2, seed: int = 0) -> tuple[RecordedChains, RecordedChains]:
        """Split the chains into those to fit on and those to evaluate with, by groups.

        Args:
            share: of the groups to evaluate with, in (0, 1).
            seed: of the draw.

        Returns:
            Chains to fit on; chains to evaluate with.

        Raises:
            ValueError: there are fewer than two groups.
        """
        groups = torch.unique(self.group)
        if len(groups) < 2:
            raise ValueError(
                "all chains are of one episode or observation, so none can be kept for evaluation; record more of them"
            )
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
        held_out = groups[order[: max(1, round(share * len(groups)))]]
        judged_by = torch.isin(self.group, held_out)
        return self.where(~judged_by), self.where(judged_by)


def x0_increments(
    process: ReverseProcess, chains: RecordedChains, lag: int
) -> tuple[Float[Tensor, "j n d"], Float[Tensor, "j n d"]]:
    """Compute what a drafter sees and what it should predict, ``lag`` steps after the last x̂0 that it knows.

    Args:
        process: the chain that was recorded.
        chains: N recorded ones.
        lag: steps, from 1 on.

    Returns:
        For the steps j = lag … K − 1: the innovation x_j − x̄_j, where x̄ is the mean path from x_{j−lag} under its
        constant x̂0; and the change of x̂0 on the way. Shapes ``(K − lag, N, d)``.
    """
    states, x0, steps = chains.states, chains.x0, chains.num_steps
    begin = torch.arange(steps - lag)
    chain = MultiStepTransition(process.to("cpu", states.dtype))
    mean = chain.mean(begin, begin + lag, states[: steps - lag], x0[: steps - lag])
    return states[lag:steps] - mean, x0[lag:] - x0[: steps - lag]


def sensitivity(process: ReverseProcess) -> Float[Tensor, " k"]:
    """Compute b_k/σ_k, the error of a step in its standard deviations for an error of 1 in x̂0; 0 without noise.

    Args:
        process: the chain.

    Returns:
        Shape ``(K,)``.
    """
    return torch.where(process.sigma > 0, process.b / process.sigma.clamp(min=1e-300), 0.0)


_TINY = 1e-12


def fit_jacobian(
    process: ReverseProcess, chains: RecordedChains, *, rank: int | None = None, lags: int = 4, ridge: float = 0.02
) -> X0Jacobian:
    """Fit J_k = U diag(λ_k) Uᵀ, which predicts how x̂0 changes with the innovation.

    U are the eigenvectors of the squared covariances of change and innovation, summed over the steps with the weight
    that an error there has for acceptance. Along each of them λ_k is a one-dimensional ridge regression of its own; a
    negative one is taken for noise and becomes 0.

    Args:
        process: the chain that was recorded.
        chains: of :func:`record_chains`.
        rank: number of directions, those of most weight first; None for all.
        lags: regress on changes over 1 … ``lags`` steps, those over l steps with weight 1/l².
        ridge: relative to the mean variance of the innovation's coordinates.

    Returns:
        The Jacobian, rounded to half precision as it is stored.

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
    # Halves, as they are stored: what is evaluated is what will be read.
    return X0Jacobian(values.clamp(min=0).half().float(), basis.half().float().contiguous())


def _moments(
    process: ReverseProcess, chains: RecordedChains, lags: int
) -> tuple[Float[Tensor, "k d d"], Float[Tensor, "k d d"]]:
    """Σ δδᵀ and Σ yδᵀ of innovations δ and changes y at each step, pooled over the lags."""
    steps, _, d = chains.x0.shape
    spread, covariance = torch.zeros(steps, d, d), torch.zeros(steps, d, d)
    for lag in range(1, lags + 1):
        innovation, change = x0_increments(process, chains, lag)
        spread[lag:] += innovation.transpose(1, 2) @ innovation / lag**2
        covariance[lag:] += change.transpose(1, 2) @ innovation / lag**2
    return spread, covariance


def _weight(process: ReverseProcess) -> Float[Tensor, " k"]:
    """How far an error of J moves a step: its sensitivity times the noise that the state has just got."""
    weight = sensitivity(process).float() * process.sigma.float().roll(1)
    weight[0] = 0  # what a chain starts from is no innovation
    return weight


def _shared_basis(slopes: Float[Tensor, "k d d"]) -> Float[Tensor, "d d"]:
    """Orthonormal columns that diagonalize symmetric matrices as well as one basis can, those of most weight first."""
    energy = (slopes @ slopes).sum(0).double()
    return torch.linalg.eigh(energy)[1].flip(1).float()


FIRST_WINDOW = 0.4
"""Share of the chain that an initial guess should draft well; about what the first round covers."""

Fit = Callable[[ReverseProcess, RecordedChains], X0Guess]


class GuessChoice(NamedTuple):
    """The chosen way to fit an initial guess.

    Attributes:
        name: of the way.
        fit: makes the guess from any recorded chains.
        held_out: error of every way on chains that it was not fitted on, by name.
    """

    name: str
    fit: Fit
    held_out: dict[str, float]


def fit_guess(process: ReverseProcess, chains: RecordedChains) -> GuessChoice:
    """Choose between zero and linear regressions by their error on other groups.

    Args:
        process: the chain that was recorded.
        chains: of :func:`record_chains`.

    Returns:
        The choice.
    """
    candidates: dict[str, Fit] = {"zero": lambda *_: ZeroGuess()}
    candidates |= {f"linear, ridge {ridge:g}": partial(fit_linear_guess, ridge=ridge) for ridge in (1e-3, 1e-2, 1e-1)}
    fitted_on, judged_by = chains.split(seed=1)
    held_out = {name: guess_error(process, fit(process, fitted_on), judged_by) for name, fit in candidates.items()}
    best = min(held_out, key=held_out.__getitem__)
    return GuessChoice(best, candidates[best], held_out)


def fit_linear_guess(process: ReverseProcess, chains: RecordedChains, ridge: float = 1e-3) -> LinearGuess:
    """Regress x̂0 on the condition.

    Args:
        process: the chain that was recorded.
        chains: of :func:`record_chains`.
        ridge: relative to the variance of a condition's numbers.

    Returns:
        The regression.
    """
    mean, scale = chains.cond.mean(0), chains.cond.std(0).clamp(min=1e-2)
    z = ((chains.cond - mean) / scale).double()
    target = early_x0(process, chains).double()
    centre = target.mean(0)
    slope = torch.linalg.solve(z.T @ z + ridge * len(z) * torch.eye(z.shape[1]), z.T @ (target - centre))
    weight = (slope / scale[:, None]).T
    return LinearGuess(weight.float().contiguous(), (centre - weight @ mean.double()).float())


def guess_error(process: ReverseProcess, initial_guess: X0Guess, chains: RecordedChains) -> float:
    """Measure an initial guess by the root of Σ v_k² over the first window, averaged over chains.

    v is its error in standard deviations of the step. Half of the square is the information by which drafts under the
    guess differ from the target's steps.

    Args:
        process: the chain that was recorded.
        initial_guess: to measure.
        chains: that it was not fitted on.

    Returns:
        The error; 0 is best.
    """
    weight = _window_weight(process)
    error = initial_guess.x0(chains.x0[0], chains.cond) - chains.x0[: len(weight)]
    return float((weight[:, None] * error.square().sum(-1)).sum(0).mean().sqrt())


def early_x0(process: ReverseProcess, chains: RecordedChains) -> Float[Tensor, "n d"]:
    """Compute the constant x̂0 that is nearest to each chain's own over the first window.

    The network's value at pure noise will not do: there it is the least accurate, and predicts later ones worse.

    Args:
        process: the chain that was recorded.
        chains: N recorded ones.

    Returns:
        Shape ``(N, d)``.
    """
    weight = _window_weight(process)
    return torch.einsum("k,knd->nd", weight / weight.sum(), chains.x0[: len(weight)])


def _window_weight(process: ReverseProcess) -> Float[Tensor, " w"]:
    return sensitivity(process)[: max(1, round(FIRST_WINDOW * process.num_steps))].float().square()


_JACOBIAN_BYTES = 400_000
_LAGS = (1, 4)


def fit_calibration(
    process: ReverseProcess, chains: RecordedChains, about: Mapping[str, Any] | None = None
) -> Calibration:
    """Fit Jacobian and initial guess on four fifths of the groups, evaluate them on the rest, and refit them on all.

    Args:
        process: the chain that was recorded.
        chains: in random order.
        about: kept with the result, beside the errors.

    Returns:
        The calibration.

    Raises:
        ValueError: the chains are not of this process, or all of one group.
    """
    fitted_on, judged_by = chains.split()
    rank = rank_that_fits(chains)
    tried = fit_jacobian(process, fitted_on, rank=rank)
    jacobian = fit_jacobian(process, chains, rank=rank)
    initial_guess = fit_guess(process, chains)
    figures = {
        "chains": len(judged_by),
        "groups": judged_by.num_groups,
        "distance": {
            f"lag {lag}": {
                "free": mean_distance(process, None, judged_by, lag),
                "linear": mean_distance(process, tried, judged_by, lag),
            }
            for lag in _LAGS
        },
        "initial_guess": initial_guess.held_out,
    }
    own = {
        "num_inference_steps": chains.num_steps,
        "chains": len(chains),
        "groups": chains.num_groups,
        "initial_guess": initial_guess.name,
        "held_out": figures,
    }
    return Calibration(jacobian, initial_guess.fit(process, chains), {**(about or {}), **own})


def mean_distance(process: ReverseProcess, jacobian: X0Jacobian | None, chains: RecordedChains, lag: int) -> float:
    """Measure how far drafts are from the target ``lag`` steps after the last known x̂0.

    Args:
        process: the chain that was recorded.
        jacobian: of the drafter; None for the free drafter.
        chains: that it was not fitted on.
        lag: steps, from 1 on.

    Returns:
        In standard deviations of the step: the mean over the noisy steps of the median over the chains.
    """
    innovation, change = x0_increments(process, chains, lag)
    if jacobian is not None:
        change = change - jacobian.expand(jacobian.values[lag:, None] * jacobian.project(innovation))
    distance = change.norm(dim=-1) * sensitivity(process)[lag:, None].to(change.dtype)
    return float(distance[process.sigma[lag:] > 0].median(dim=1).values.mean())


def rank_that_fits(chains: RecordedChains) -> int:
    """Choose the rank of a Jacobian that keeps the file small.

    Args:
        chains: to fit it on.

    Returns:
        All directions of an event, or as many as take 400 kB.
    """
    d = chains.x0.shape[2]
    return max(1, min(d, _JACOBIAN_BYTES // (2 * (d + chains.num_steps))))
