"""What is remembered of one chain's tokens, pass by pass.

A token's feature is what all blocks together add to it: its hidden state behind the last block less that before the
first. The input embedding is computed afresh for every token, so that what is cached is the sum of the blocks' branches
and not the noisy input. All blocks compute the same tokens; so extrapolating each branch and extrapolating their sum is
the same, and one feature a token is enough. Beside it each attention keeps the latest keys and values of all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .attention import attend
from .extrapolation import FeatureHistory
from .importance import log_importance
from .levels import Levels, choose_levels
from .settings import CacheSettings, CachingError


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a joint sequence are.

    Attributes:
        context: tokens beside the cached ones, such as a prompt's; always computed.
        leading: whether they come first.
    """

    context: int = 0
    leading: bool = False

    def positions(self, index: Int[Tensor, "b chosen"], tokens: int) -> Int[Tensor, "b all"]:
        """Positions in the joint sequence of chosen tokens and context, in its order."""
        if not self.context:
            return index
        first = 0 if self.leading else tokens
        context = torch.arange(first, first + self.context, device=index.device).expand(len(index), -1)
        return torch.cat([context, index + self.context] if self.leading else [index, context], 1)

    def cached(self, joint: Float[Tensor, "b all"]) -> Float[Tensor, "b tokens"]:
        """The part of a joint sequence that belongs to the tokens."""
        return joint[:, self.context :] if self.leading else joint[:, : joint.shape[1] - self.context]


class TokenCache:
    """The cache of one chain; all its rows stand at the same time.

    A pass is :meth:`begin`, :meth:`enter` before the first block, :meth:`attend` in every attention, :meth:`leave`
    behind the last block, :meth:`end`.

    Args:
        settings: how much to compute.

    Attributes:
        levels: of the pass that goes on; None if it computes all tokens.
        served: how often each token has come from the cache since it was computed; None before the first pass.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self.levels: Levels | None = None
        self.served: Int[Tensor, "b tokens"] | None = None
        self._features: FeatureHistory | None = None
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._history: Tensor | None = None
        self._received: Tensor | None = None
        self._entered: Tensor | None = None
        self._future: Tensor | None = None
        self._time, self._keep = 0.0, True

    def begin(self, time: float, future: Float[Tensor, "b tokens"] | None = None, keep: bool = True) -> None:
        """A pass at ``time`` follows.

        Args:
            time: on the scale that features are extrapolated on.
            future: attention that the tokens will receive, if it is known.
            keep: False for a pass over all tokens that only looks and leaves no trace in the cache.
        """
        self._time, self._future, self._keep = time, future, keep
        self._received, self.levels, self._entered = None, None, None

    def enter(self, hidden: Float[Tensor, "b tokens width"]) -> Float[Tensor, "b chosen width"]:
        """Choose the tokens to compute and hand on their hidden states alone."""
        self._entered = hidden
        count = self.settings.computed(hidden.shape[1])
        if not self._keep or self._history is None or count == hidden.shape[1]:
            return hidden
        assert self.served is not None
        importance = log_importance(self._history, self._future, self.served)
        self.levels = choose_levels(importance, count, self.settings.copied)
        return _gather(hidden, self.levels.computed)

    def positions(self, layout: Layout) -> Int[Tensor, "b all"] | None:
        """Positions of the queries of this pass in the joint sequence; None if they are all there."""
        if self.levels is None or self._entered is None:
            return None
        return layout.positions(self.levels.computed, self._entered.shape[1])

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "b heads asking part"],
        key: Float[Tensor, "b heads asking part"],
        value: Float[Tensor, "b heads asking part"],
        layout: Layout = Layout(),
        causal: bool = False,
    ) -> Float[Tensor, "b heads asking part"]:
        """Attention of computed tokens to all tokens.

        Args:
            layer: number of this attention; each has its own keys and values.
            query, key, value: of computed tokens and context, in the order of the joint sequence.
            layout: of that sequence.
            causal: whether a position sees only itself and those before.
        """
        positions = self.positions(layout)
        if positions is None:
            if self._keep:
                self._keys[layer], self._values[layer] = key.contiguous(), value.contiguous()
        else:
            where = positions[:, None, :, None].expand_as(key)
            key = self._keys[layer].scatter_(2, where, key)
            value = self._values[layer].scatter_(2, where, value)
        allowed = _past(positions, query, key.shape[2]) if causal else None
        mixed, received = attend(query, key, value, allowed)
        here = layout.cached(received)
        self._received = here if self._received is None else self._received + here
        return mixed

    def leave(self, hidden: Float[Tensor, "b chosen width"]) -> Float[Tensor, "b tokens width"]:
        """Hidden states of all tokens behind the last block, from those of the computed ones."""
        entered, self._entered = self._entered, None
        if entered is None:
            raise CachingError("the last block ran without the first; this network does not run its blocks in order")
        if not self._keep:
            return hidden
        if self.levels is None:
            self._push(entered, hidden - entered, None)
            return hidden
        computed = self.levels.computed
        features = self._push(entered, hidden - _gather(entered, computed), computed)
        return entered + features.predict(self._time, self.levels.copied)

    def _push(self, entered: Tensor, added: Tensor, index: Tensor | None) -> FeatureHistory:
        if self._features is None:
            self._features = FeatureHistory(entered)
        if self.served is None:
            self.served = torch.zeros(entered.shape[:2], dtype=torch.long, device=entered.device)
        self._features.push(added, self._time, index)
        self.served = torch.zeros_like(self.served) if index is None else (self.served + 1).scatter(1, index, 0)
        return self._features

    def end(self) -> Float[Tensor, "b tokens"]:
        """The pass is over: the attention that each token received, over all layers."""
        if self._received is None:
            raise CachingError("no attention of this network was seen in a pass; its layers do not fit")
        if self._keep:
            self._history = self._received
        return self._received


def _gather(hidden: Float[Tensor, "b tokens width"], index: Int[Tensor, "b chosen"]) -> Float[Tensor, "b chosen width"]:
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


def _past(positions: Int[Tensor, "b asking"] | None, query: Tensor, asked: int) -> Bool[Tensor, "b 1 asking asked"]:
    everyone = torch.arange(asked, device=query.device)
    asking = everyone.expand(len(query), -1) if positions is None else positions
    return (everyone <= asking[..., None])[:, None]
