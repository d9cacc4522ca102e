"""Drafts that know how x̂0 answers to the noise that they themselves draw."""

from __future__ import annotations

import torch

from ..gains import Gains, GainsOn
from ..recurrence import recur
from .base import Draft, Drafter, DraftStart


class LinearDrafter(Drafter):
    """x̂0 at a drafted state = f + J_k (x − x̄): linear in the innovation, with gains fitted once per network.

    f is the x̂0 at the anchor, and x̄ the mean path from there under constant f. In the basis of the gains the
    innovation c = Uᵀ(x − x̄) obeys c_{j+1} = (a_j + b_j λ_j) c_j + σ_j Uᵀξ_j number by number, so that a window is
    drafted at once, by a few products and one recurrence. No network pass of its own; zero gains make it the free
    drafter.

    Args:
        gains: of the process that is to be sampled and the network that samples it. Wrong ones cost passes, never
            exactness.
    """

    def __init__(self, gains: Gains) -> None:
        self.gains = gains
        self._on = GainsOn(gains)

    def __repr__(self) -> str:
        return f"LinearDrafter(K={self.gains.num_steps}, rank={self.gains.values.shape[1]})"

    def draft(self, start: DraftStart) -> Draft:
        """Draft the window.

        Raises:
            ValueError: the gains are of another number of steps or another event.
        """
        process, window = start.chain.process, start.noise.shape[1]
        gains = self._on.at(process, start.x)
        k = (start.k[:, None] + torch.arange(window, device=start.k.device)).clamp(max=process.num_steps - 1)
        a, b, sigma = (coefficient[k][..., None] for coefficient in (process.a, process.b, process.sigma))
        away = start.x - start.chain.mean(start.anchor_k, start.k, start.anchor_x, start.anchor_x0)
        values = gains.values[k]
        noise = gains.project(start.noise.flatten(2))
        innovation = recur(a + b * values, sigma * noise, gains.project(away.flatten(1)))
        answer = gains.expand(values * innovation[:, :-1])
        x0 = (start.anchor_x0.flatten(1)[:, None] + answer).view_as(start.noise)
        return Draft(start.chain.draft_along(start.k, start.x, x0, start.noise), x0)
