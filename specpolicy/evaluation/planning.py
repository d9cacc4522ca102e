"""What a paired comparison of success rates can find out, before its seeds are spent.

Two samplers play the same n seeds, once each. All probabilities are sums over the exact distribution of the outcomes,
not simulations: a seed is won by the first alone, by the second alone, or by neither alone, with probabilities that
follow from the difference of the success rates and from the discordance, the share of seeds with different outcomes.
The tests are those of the tables: McNemar's exact test (:func:`~specpolicy.evaluation.statistics.sign_flip_test` with
one repeat) for a difference, and the lower bound of
:func:`~specpolicy.evaluation.statistics.paired_difference` for non-inferiority.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from specpolicy.evaluation.statistics import StatisticsError, confidence_level

MOST_SEEDS = 2000
"""More would take minutes and a great deal of memory; the sums grow with the square of the seeds."""


@dataclass(frozen=True)
class Plan:
    """What n paired seeds can find out.

    Attributes:
        seeds: n.
        success: success rate of the reference, in (0, 1).
        discordance: share of seeds on which the two samplers differ while their success rates are equal.
        margin: loss of success that still counts as non-inferior.
        detectable: the smallest loss that McNemar's test finds with the wanted power; None if no loss that is possible
            at this success rate is found.
        non_inferior: probability that a sampler of equal success is found non-inferior at the margin.
        error: probability that one that is worse by exactly the margin is found non-inferior.
    """

    seeds: int
    success: float
    discordance: float
    margin: float
    detectable: float | None
    non_inferior: float
    error: float


def plan_comparison(
    seeds: int,
    success: float,
    discordance: float | None = None,
    margin: float = 0.05,
    power: float = 0.8,
    confidence: float = 0.95,
) -> Plan:
    """Compute what a paired comparison over ``seeds`` seeds can find out.

    Args:
        seeds: n, from 2 to 2000; initial states, each played once by both samplers. Repeats from one state add less.
        success: expected success rate of the reference, in (0, 1).
        discordance: share of seeds on which two equally good samplers differ, in (0, 1]; None for 2 p (1 − p), as if
            they succeeded independently on a seed, which asks for more seeds than samplers do that agree.
        margin: loss of success that is still acceptable, in (0, 1).
        power: wanted probability of finding a loss, in (0, 1).
        confidence: of the two-sided test and interval, in (0, 1).

    Returns:
        The plan.

    Raises:
        StatisticsError: an argument is out of its range.
    """
    if not 2 <= seeds <= MOST_SEEDS:
        raise StatisticsError(f"seeds={seeds}: expected 2 to {MOST_SEEDS} paired seeds")
    for name, value in (("success", success), ("margin", margin), ("power", power)):
        if not 0 < value < 1:
            raise StatisticsError(f"{name}={value}: expected a number between 0 and 1; 5 points are 0.05")
    alpha = 1 - confidence_level(confidence)
    most = 2 * min(success, 1 - success)
    share = 2 * success * (1 - success) if discordance is None else discordance
    if not 0 < share <= most:
        raise StatisticsError(
            f"discordance={share}: expected more than 0 and at most {most:g}, as much as two samplers of success "
            f"{success:g} can differ"
        )

    def found(loss: float) -> float:
        return mcnemar_power(seeds, *_cells(loss, share), alpha)

    largest = success - share / 2  # no more seeds can be lost than the reference has won
    if margin > largest:
        raise StatisticsError(f"margin={margin}: a reference of success {success:g} has at most {largest:g} to lose")
    return Plan(
        seeds=seeds,
        success=success,
        discordance=share,
        margin=margin,
        detectable=_smallest(found, power, largest),
        non_inferior=non_inferiority_power(seeds, *_cells(0.0, share), margin, confidence),
        error=non_inferiority_power(seeds, *_cells(margin, share), margin, confidence),
    )


def mcnemar_power(seeds: int, wins: float, losses: float, alpha: float = 0.05) -> float:
    """Compute the probability that McNemar's exact two-sided test finds a difference.

    Args:
        seeds: n, at least 1.
        wins: probability that a seed is won by the first sampler alone.
        losses: probability that it is won by the second alone; both together at most 1.
        alpha: level of the test, in (0, 1).

    Returns:
        The power; at ``wins == losses`` the size of the test, at most ``alpha``.
    """
    from scipy.stats import binom

    discordant = np.arange(seeds + 1)
    # The largest count of the rarer kind at which the doubled tail is still within alpha; −1 where there is none.
    tail = binom.ppf(alpha / 2, discordant, 0.5)
    tail = np.where(2 * binom.cdf(tail, discordant, 0.5) <= alpha, tail, tail - 1)
    share = wins / (wins + losses) if wins + losses > 0 else 0.5
    reject = binom.cdf(tail, discordant, share) + binom.sf(discordant - tail - 1, discordant, share)
    return float(np.sum(binom.pmf(discordant, seeds, wins + losses) * np.where(tail < 0, 0.0, reject)))


def non_inferiority_power(
    seeds: int, wins: float, losses: float, margin: float = 0.05, confidence: float = 0.95
) -> float:
    """Compute the probability that the interval of the paired difference lies above −margin.

    Args:
        seeds: n, at least 1.
        wins: probability that a seed is won by the new sampler alone.
        losses: probability that it is won by the reference alone; both together at most 1.
        margin: acceptable loss, in (0, 1).
        confidence: of the two-sided interval, in (0, 1).

    Returns:
        The probability; at ``losses - wins == margin`` the error rate of the claim.
    """
    from scipy.stats import binom, norm

    z = float(norm.ppf((1 + confidence) / 2))
    won = np.arange(seeds + 1)
    total = 0.0
    for lost in range(seeds + 1):
        chance = float(binom.pmf(lost, seeds, losses))
        if chance < 1e-14:
            continue
        here = won[: seeds - lost + 1]
        mean = (here - lost) / (seeds + 2)  # one pair in favour of either side is added, as paired_difference does
        spread = np.sqrt((here + lost + 2) / (seeds + 2) - mean**2)
        claimed = mean - z * spread / np.sqrt(seeds + 2) > -margin
        total += chance * float(np.sum(binom.pmf(here, seeds - lost, wins / (1 - losses))[claimed]))
    return total


def _cells(loss: float, discordance: float) -> tuple[float, float]:
    """Probabilities of wins and losses: what is lost comes on top of the discordance of equals, half on either side."""
    return discordance / 2, discordance / 2 + loss


def _smallest(found: Callable[[float], float], power: float, largest: float) -> float | None:
    """Bisect for the smallest loss that is found with the power, to a hundredth of a point."""
    if found(largest) < power:
        return None
    low, high = 0.0, largest
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high
