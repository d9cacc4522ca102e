"""Pre-drafts of several episodes in one computation, and apart again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specpolicy.speculative.predraft import PreDraft


def split(draft: PreDraft) -> list[PreDraft]:
    """A pre-draft of one chain for each chain."""
    return [
        PreDraft(draft.states[:, row : row + 1], draft.x0[:, row : row + 1], draft.noise[:, row : row + 1])
        for row in range(draft.states.shape[1])
    ]


def join(drafts: Sequence[PreDraft]) -> PreDraft:
    """One pre-draft of all chains, in order; they must be of one sampler."""
    return PreDraft(
        torch.cat([each.states for each in drafts], 1),
        torch.cat([each.x0 for each in drafts], 1),
        torch.cat([each.noise for each in drafts], 1),
    )
