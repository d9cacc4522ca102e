"""From recorded chains to a calibration, with its worth on chains that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specpolicy.speculative.gains import Gains
from specpolicy.speculative.process import ReverseProcess

from .calibration import Calibration
from .chains import RecordedChains, changes, sensitivity
from .gains import fit_gains
from .opening import fit_opening

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
    """Fit gains and opening on four fifths of the groups, judge them on the last fifth, and fit them again on all.

    Args:
        process: the chain that was recorded.
        chains: in random order.
        about: kept with the result, beside the figures.
        most_centres: observations that an opening may keep in the calibration; None for as many as a file has room for,
            0 for none.

    Raises:
        ValueError: the chains are not of this process, or all of one group.
    """
    fitted_on, judged_by = chains.split()
    rank = rank_that_fits(chains)
    tried = fit_gains(process, fitted_on, rank=rank)
    room = centres_that_fit(chains, rank)
    gains = fit_gains(process, chains, rank=rank)
    opening = fit_opening(process, chains, room if most_centres is None else min(most_centres, room))
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
        "opening": opening.held_out,
    }
    own = {
        "num_inference_steps": chains.num_steps,
        "chains": len(chains),
        "groups": chains.num_groups,
        "opening": opening.name,
        "held_out": figures,
    }
    return Calibration(gains, opening.fit(process, chains), {**(about or {}), **own})


def mean_distance(process: ReverseProcess, gains: Gains | None, chains: RecordedChains, lag: int) -> float:
    """How far a draft is from the target ``lag`` steps after the last known x̂0, in standard deviations of the step.

    The mean over the noisy steps of the median over the chains; ``None`` are the gains of the free drafter.
    """
    innovation, change = changes(process, chains, lag)
    if gains is not None:
        change = change - gains.expand(gains.values[lag:, None] * gains.project(innovation))
    distance = change.norm(dim=-1) * sensitivity(process)[lag:, None].to(change.dtype)
    return float(distance[process.sigma[lag:] > 0].median(dim=1).values.mean())


def rank_that_fits(chains: RecordedChains) -> int:
    """All directions of an event, or as many as the file has room for."""
    d = chains.x0.shape[2]
    return max(1, min(d, _GAINS_BYTES // (2 * (d + chains.num_steps))))


def centres_that_fit(chains: RecordedChains, rank: int) -> int:
    """Conditions that the file has room for beside the gains and a linear regression."""
    d, c = chains.x0.shape[2], chains.cond.shape[1]
    others = 2 * rank * (d + chains.num_steps) + 4 * (d * c + d + c) + 20_000
    return max(0, (FILE_BYTES - others) // (2 * (c + d)))
