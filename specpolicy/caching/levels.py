"""Which tokens are computed, copied and extrapolated."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """Three levels that part the tokens of each row; what is neither computed nor copied is extrapolated.

    Attributes:
        computed: positions in rising order, as many in every row, so that rows can be gathered into one batch.
        copied: true where the feature is copied.
    """

    computed: Int[Tensor, "b chosen"]
    copied: Bool[Tensor, "b tokens"]

    @property
    def cached(self) -> Bool[Tensor, "b tokens"]:
        """True for copied and extrapolated tokens."""
        return (self.copied | True).scatter(1, self.computed, False)


def choose_levels(log_importance: Float[Tensor, "b tokens"], count: int, copied: float) -> Levels:
    """The ``count`` most important tokens are computed; the least important are copied.

    Args:
        log_importance: of each token.
        count: tokens to compute, 1 or more.
        copied: share of a row's importance, 0 to 1: the least important tokens that hold no more than it together are
            copied, unless they are computed.
    """
    chosen = log_importance.topk(count, dim=1).indices.sort(1).values
    share = log_importance.softmax(1)
    rising, order = share.sort(1)
    # a rounding error must not keep the last token out if all may be copied
    below = rising.cumsum(1) <= copied * (1 + 1e-5)
    mask = below.scatter(1, order, below).scatter(1, chosen, False)
    return Levels(chosen, mask)
