"""Drafters that hold one x̂0 over the whole window.

x̂0 along the chain is a martingale, so the latest value is the best constant guess of the coming ones; holding ε
instead accepts several times less.
"""

from __future__ import annotations

from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart


def _hold(start: DraftStart) -> Draft:
    states = start.chain.draft(start.k, start.x, start.last_eval_x0, start.noise)
    return Draft(states, start.last_eval_x0[:, None])


class FreeDrafter(Drafter):
    """Holds the x̂0 that the previous round's pass computed at the last accepted state (Soen et al.): no extra pass."""

    def draft(self, start: DraftStart) -> Draft:
        """Draft under the anchor's x̂0."""
        return _hold(start)


class FrozenDrafter(Drafter):
    """Holds x̂0 at the round's present state (ASD; De Bortoli et al.): better drafts, one extra pass a round."""

    refreshes = True

    def draft(self, start: DraftStart) -> Draft:
        """Draft under the anchor's x̂0, which the sampler has just refreshed."""
        return _hold(start)
