"""The windows with the least expected time, by dynamic programming from the end of the chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from .profile import AcceptanceProfile

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
