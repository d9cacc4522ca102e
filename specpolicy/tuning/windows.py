"""Which plan to trust: windows are chosen on some chains and judged on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from specpolicy.tuning.acceptance import AcceptanceProfile

Cost = Callable[[int, int], float]
"""Time of a round that begins at a position (first argument) and drafts so many steps (second)."""


@dataclass(frozen=True)
class WindowPlan:
    """A window for each position.

    Attributes:
        windows: K of them.
        remaining: expected time from each position to the end, K + 1 numbers; the first is that of a whole chain.
    """

    windows: list[int]
    remaining: list[float]

    @property
    def expected(self) -> float:
        """Expected time of a chain."""
        return self.remaining[0]


def plan_windows(profile: AcceptanceProfile, cost: Cost) -> WindowPlan:
    """Choose the window of each position.

    With V(K) = 0, the remaining time of a chain that stands at k is::

        V(k) = min_w  cost(k, w) + E[V(k + τ_w + 1)]

    where τ_w is what a window of w steps keeps, as the profile has it. A position stands for all that is known of a
    chain there.

    Args:
        profile: of the sampler.
        cost: of its rounds.
    """
    remaining, windows = torch.zeros(profile.num_steps + 1, dtype=torch.float64), [1] * profile.num_steps
    for k in range(profile.num_steps - 1, -1, -1):
        times = _times(profile, cost, remaining, k, range(1, _choices(profile, k) + 1))
        best = int(times.argmin())
        windows[k], remaining[k] = best + 1, times[best]
    return WindowPlan(windows, remaining.tolist())


def expected_time(profile: AcceptanceProfile, cost: Cost, window: int | Sequence[int]) -> float:
    """Expected time of a chain with given windows, by the same measure; none longer than the profile's."""
    windows = [window] * profile.num_steps if isinstance(window, int) else list(window)
    remaining = torch.zeros(profile.num_steps + 1, dtype=torch.float64)
    for k in range(profile.num_steps - 1, -1, -1):
        remaining[k] = _times(profile, cost, remaining, k, [min(windows[k], _choices(profile, k))])[0]
    return float(remaining[0])


def best_constant(profile: AcceptanceProfile, cost: Cost) -> tuple[int, float]:
    """The constant window with the least expected time, and that time."""
    times = [expected_time(profile, cost, window) for window in range(1, profile.longest + 1)]
    best = min(range(len(times)), key=times.__getitem__)
    return best + 1, times[best]


def _choices(profile: AcceptanceProfile, position: int) -> int:
    """The longest window that differs from shorter ones there."""
    return max(1, min(profile.longest, int(profile.reach[position])))


def _times(
    profile: AcceptanceProfile,
    cost: Cost,
    remaining: Float64[Tensor, " k1"],
    position: int,
    windows: Sequence[int],
) -> Float64[Tensor, " w"]:
    """Expected time from ``position`` on for each of some windows."""
    reach, columns = int(profile.reach[position]), torch.tensor(windows) - 1
    spent = torch.tensor([cost(position, min(window, reach)) for window in windows], dtype=torch.float64)
    then = position + 1 + profile.accepted[:, columns].clamp(max=reach)
    return spent + profile.weights[position] @ remaining[then]


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
