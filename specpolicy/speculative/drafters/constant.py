"""Drafters that keep one x̂0 over the whole window.

x̂0 along the chain is a martingale, so the latest value is the best constant guess of the coming ones; a constant ε
instead is accepted several times less.
"""

from __future__ import annotations

from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart


def _constant(start: DraftStart) -> Draft:
    states = start.chain.draft(start.k, start.x, start.last_eval_x0, start.noise)
    return Draft(states, start.last_eval_x0[:, None])


class FreeDrafter(Drafter):
    """Keeps the x̂0 that the last round found at the last accepted state (Soen et al.): no extra evaluation."""

    def draft(self, start: DraftStart) -> Draft:
        """Draft under the last evaluated x̂0."""
        return _constant(start)


class FrozenDrafter(Drafter):
    """Keeps x̂0 at the round's present state (ASD; De Bortoli et al.): better drafts, one extra evaluation a round."""

    refreshes = True

    def draft(self, start: DraftStart) -> Draft:
        """Draft under the x̂0 that the sampler has just evaluated."""
        return _constant(start)
