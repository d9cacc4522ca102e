"""From recorded chains to a calibration, with its worth on chains that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specpolicy.calibration.store import Calibration
from specpolicy.speculative.drafters.linear import X0Jacobian
from specpolicy.speculative.initial_guess import KernelGuess, LinearGuess, X0Guess, ZeroGuess, neighbourhood
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
            same observation) and are never on both sides of a held-out split. Shape ``(N,)``.
    """

    states: Float[Tensor, "k1 n d"]
    x0: Float[Tensor, "k n d"]
    cond: Float[Tensor, "n c"]
    group: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.cond)

    @property
    def num_steps(self) -> int:
        """K."""
        return len(self.x0)

    @property
    def num_groups(self) -> int:
        """How many different groups."""
        return len(torch.unique(self.group))

    def where(self, kept: Bool[Tensor, " n"]) -> RecordedChains:
        """Some of the chains."""
        return RecordedChains(self.states[:, kept], self.x0[:, kept], self.cond[kept], self.group[kept])

    def split(self, share: float = 0.2, seed: int = 0) -> tuple[RecordedChains, RecordedChains]:
        """Chains to fit on, and those of about ``share`` of the groups to judge by.

        Raises:
            ValueError: there are fewer than two groups.
        """
        groups = torch.unique(self.group)
        if len(groups) < 2:
            raise ValueError(
                "all chains are of one episode or observation, so that none can be held out; record more of them"
            )
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
        held_out = groups[order[: max(1, round(share * len(groups)))]]
        judged_by = torch.isin(self.group, held_out)
        return self.where(~judged_by), self.where(judged_by)


def x0_increments(
    process: ReverseProcess, chains: RecordedChains, lag: int
) -> tuple[Float[Tensor, "j n d"], Float[Tensor, "j n d"]]:
    """What a drafter sees and what it should say, ``lag`` steps after the last x̂0 that it knows.

    Returns:
        For the steps j = lag … K − 1: the innovation x_j − x̄_j, where x̄ is the mean path from x_{j−lag} under its
        constant x̂0; and the change of x̂0 on the way.
    """
    states, x0, steps = chains.states, chains.x0, chains.num_steps
    begin = torch.arange(steps - lag)
    chain = MultiStepTransition(process.to("cpu", states.dtype))
    mean = chain.mean(begin, begin + lag, states[: steps - lag], x0[: steps - lag])
    return states[lag:steps] - mean, x0[lag:] - x0[: steps - lag]


def sensitivity(process: ReverseProcess) -> Float[Tensor, " k"]:
    """b_k/σ_k: by how many standard deviations a step is wrong if its x̂0 is wrong by one; 0 without noise."""
    return torch.where(process.sigma > 0, process.b / process.sigma.clamp(min=1e-300), 0.0)


_TINY = 1e-12


def fit_jacobian(
    process: ReverseProcess, chains: RecordedChains, *, rank: int | None = None, lags: int = 4, ridge: float = 0.02
) -> X0Jacobian:
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
    """How far a missed gain moves a step: its sensitivity times the noise that the state has just got."""
    weight = sensitivity(process).float() * process.sigma.float().roll(1)
    weight[0] = 0  # what a chain starts from is no innovation
    return weight


def _shared_basis(slopes: Float[Tensor, "k d d"]) -> Float[Tensor, "d d"]:
    """Orthonormal columns that diagonalize symmetric matrices as well as one basis can, the weightiest first."""
    energy = (slopes @ slopes).sum(0).double()
    return torch.linalg.eigh(energy)[1].flip(1).float()


FIRST_WINDOW = 0.4
"""Share of the chain that an initial guess is to draft well; about what the first round covers."""

Fit = Callable[[ReverseProcess, RecordedChains], X0Guess]


class GuessChoice(NamedTuple):
    """The chosen way to fit an initial guess, and how all of them did on chains that they were not fitted on."""

    name: str
    fit: Fit
    held_out: dict[str, float]


def fit_guess(process: ReverseProcess, chains: RecordedChains, most_centres: int = 2000) -> GuessChoice:
    """Choose between zero, linear and kernel regressions by their error on held-out groups.

    Args:
        process: the chain that was recorded. chains: of :func:`record_chains`.
        most_centres: conditions that a kernel regression may keep; 0 tries none.

    Returns:
        The choice; its ``fit`` makes the initial guess from any recorded chains.
    """
    candidates: dict[str, Fit] = {"zero": lambda *_: ZeroGuess()}
    candidates |= {f"linear, ridge {ridge:g}": partial(fit_linear_guess, ridge=ridge) for ridge in (1e-3, 1e-2, 1e-1)}
    for length, ridge in product((0.3, 0.5, 1.0), (0.1, 0.5)) if most_centres > 0 else ():
        kernel = partial(fit_kernel_guess, length=length, ridge=ridge, most_centres=most_centres)
        candidates[f"kernel, length {length:g}, ridge {ridge:g}"] = kernel
    fitted_on, judged_by = chains.split(seed=1)
    held_out = {name: guess_error(process, fit(process, fitted_on), judged_by) for name, fit in candidates.items()}
    best = min(held_out, key=held_out.__getitem__)
    return GuessChoice(best, candidates[best], held_out)


def fit_linear_guess(process: ReverseProcess, chains: RecordedChains, ridge: float = 1e-3) -> LinearGuess:
    """Ridge regression of x̂0 on the condition; ``ridge`` is relative to the variance of a condition's numbers."""
    mean, scale = chains.cond.mean(0), chains.cond.std(0).clamp(min=1e-2)
    z = ((chains.cond - mean) / scale).double()
    target = early_x0(process, chains).double()
    centre = target.mean(0)
    slope = torch.linalg.solve(z.T @ z + ridge * len(z) * torch.eye(z.shape[1]), z.T @ (target - centre))
    weight = (slope / scale[:, None]).T
    return LinearGuess(weight.float().contiguous(), (centre - weight @ mean.double()).float())


def fit_kernel_guess(
    process: ReverseProcess, chains: RecordedChains, length: float = 0.5, ridge: float = 0.1, most_centres: int = 2000
) -> KernelGuess:
    """Kernel ridge regression of what a linear one leaves.

    Args:
        process: the chain that was recorded. chains: of :func:`record_chains`.
        length: of the kernel, in standard deviations of a condition's numbers times the root of their count.
        ridge: relative to the kernel at distance 0.
        most_centres: keep so many of the chains' conditions, the first ones.
    """
    linear = fit_linear_guess(process, chains)
    spread = chains.cond.std(0).clamp(min=1e-2)
    scale = 1 / (spread * length * chains.cond.shape[1] ** 0.5)
    # Halves, as they are stored: what rounding moves, the weights can make good.
    centres = (chains.cond[:most_centres] * scale).half().float()
    left = early_x0(process, chains) - linear.x0(chains.x0[0], chains.cond)
    kernel = neighbourhood(centres, centres).double() + ridge * torch.eye(len(centres))
    weights = torch.linalg.solve(kernel, left[:most_centres].double()).half().float()
    return KernelGuess(linear, scale, centres, weights)


def guess_error(process: ReverseProcess, initial_guess: X0Guess, chains: RecordedChains) -> float:
    """Root of Σ v_k² over the first window, averaged over chains; v is the miss in standard deviations of the step.

    Half of its square is the information by which drafts under the initial guess's x̂0 differ from the target's steps.
    """
    weight = _window_weight(process)
    miss = initial_guess.x0(chains.x0[0], chains.cond) - chains.x0[: len(weight)]
    return float((weight[:, None] * miss.square().sum(-1)).sum(0).mean().sqrt())


def early_x0(process: ReverseProcess, chains: RecordedChains) -> Float[Tensor, "n d"]:
    """The constant x̂0 that is nearest to a chain's own over the first window.

    The network's value at pure noise will not do: there it is the least accurate, and predicts later ones worse.
    """
    weight = _window_weight(process)
    return torch.einsum("k,knd->nd", weight / weight.sum(), chains.x0[: len(weight)])


def _window_weight(process: ReverseProcess) -> Float[Tensor, " w"]:
    return sensitivity(process)[: max(1, round(FIRST_WINDOW * process.num_steps))].float().square()


FILE_BYTES = 1_000_000
"""A calibration is to be a small thing beside its checkpoint."""

_GAINS_BYTES = 400_000
_LAGS = (1, 4)


def fit_calibration(
    process: ReverseProcess,
    chains: RecordedChains,
    about: Mapping[str, Any] | None = None,
    most_centres: int | None = None,
) -> Calibration:
    """Fit Jacobian and guess on four fifths of the groups, judge them on the last fifth, and fit them again on all.

    Args:
        process: the chain that was recorded.
        chains: in random order.
        about: kept with the result, beside the figures.
        most_centres: observations that an initial guess may keep; None for as many as the file holds, 0 for none.

    Raises:
        ValueError: the chains are not of this process, or all of one group.
    """
    fitted_on, judged_by = chains.split()
    rank = rank_that_fits(chains)
    tried = fit_jacobian(process, fitted_on, rank=rank)
    room = centres_that_fit(chains, rank)
    jacobian = fit_jacobian(process, chains, rank=rank)
    initial_guess = fit_guess(process, chains, room if most_centres is None else min(most_centres, room))
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
    """How far a draft is from the target ``lag`` steps after the last known x̂0, in standard deviations of the step.

    The mean over the noisy steps of the median over the chains; ``None`` are the Jacobian of the free drafter.
    """
    innovation, change = x0_increments(process, chains, lag)
    if jacobian is not None:
        change = change - jacobian.expand(jacobian.values[lag:, None] * jacobian.project(innovation))
    distance = change.norm(dim=-1) * sensitivity(process)[lag:, None].to(change.dtype)
    return float(distance[process.sigma[lag:] > 0].median(dim=1).values.mean())


def rank_that_fits(chains: RecordedChains) -> int:
    """All directions of an event, or as many as the file has room for."""
    d = chains.x0.shape[2]
    return max(1, min(d, _GAINS_BYTES // (2 * (d + chains.num_steps))))


def centres_that_fit(chains: RecordedChains, rank: int) -> int:
    """Conditions that the file has room for beside the Jacobian and a linear regression."""
    d, c = chains.x0.shape[2], chains.cond.shape[1]
    others = 2 * rank * (d + chains.num_steps) + 4 * (d * c + d + c) + 20_000
    return max(0, (FILE_BYTES - others) // (2 * (c + d)))
