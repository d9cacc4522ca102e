"""Which plan to trust: windows are chosen on some chains and judged on others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .plan import Cost, best_constant, expected_time, plan_windows
from .profile import AcceptanceProfile

POOLS = (30, 60, 120, 240)
"""Rounds that the estimates of a plan may rest on."""


@dataclass(frozen=True)
class WindowChoice:
    """Windows for each position, and why these.

    Attributes:
        windows: K of them.
        expected: time of a chain with windows chosen like these, on chains that had no say in the choice.
        neighbours: rounds that the plan's estimates rest on; None if no plan was better than a constant window.
        constant: the best constant window. constant_expected: its time, judged in the same way.
        tried: the times of all plans, by their neighbours.
    """

    windows: list[int]
    expected: float
    neighbours: int | None
    constant: int
    constant_expected: float
    tried: dict[int, float]


def choose_windows(profile: AcceptanceProfile, cost: Cost) -> WindowChoice:
    """Plan with estimates of several widths and take the best, or a constant window if that is better.

    A plan picks the best of many windows at each position, and where few rounds began it picks what luck has made look
    best. Each half of the chains therefore judges what was planned on the other; then the chosen way is followed on
    all of them.

    Args:
        profile: of the sampler, of at least two chains.
        cost: of its rounds.

    Raises:
        ValueError: there is only one chain.
    """
    first, second = profile.halves()
    folds = ((first, second), (second, first))
    tried = {
        pool: sum(
            expected_time(judge, cost, plan_windows(replace(half, neighbours=pool), cost).windows)
            for half, judge in folds
        ) / 2
        for pool in POOLS
    }  # fmt: skip
    constant_expected = sum(expected_time(judge, cost, best_constant(half, cost)[0]) for half, judge in folds) / 2
    constant, best = best_constant(profile, cost)[0], min(tried, key=tried.__getitem__)
    if tried[best] < constant_expected:
        windows = plan_windows(replace(profile, neighbours=best), cost).windows
        return WindowChoice(windows, tried[best], best, constant, constant_expected, tried)
    return WindowChoice([constant] * profile.num_steps, constant_expected, None, constant, constant_expected, tried)
