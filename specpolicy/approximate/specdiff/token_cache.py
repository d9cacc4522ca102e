"""Putting a cache between the blocks of a network, and taking it out again."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from specpolicy.approximate.specdiff.importance import CacheSettings, CachingError, log_importance
from specpolicy.utils.attributes import replaced


def attend(
    query: Float[Tensor, "b heads asking part"],
    key: Float[Tensor, "b heads asked part"],
    value: Float[Tensor, "b heads asked width"],
    allowed: Bool[Tensor, "#b 1 asking asked"] | None = None,
) -> tuple[Float[Tensor, "b heads asking width"], Float[Tensor, "b asked"]]:
    """Compute scaled dot-product attention, and the attention on each key, summed over heads and queries.

    Unlike fused attention this takes memory for all scores: ``b · heads · asking · asked`` numbers.

    Args:
        query: as for ``torch.nn.functional.scaled_dot_product_attention``.
        key: likewise.
        value: likewise.
        allowed: false where a query must not attend.

    Returns:
        The outputs, and the attention that each key received.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    # in float32 at least; a sum of thousands of bfloat16 numbers has no digits left
    share = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return share.to(value.dtype) @ value, share.sum((1, 2))


KEPT = 3
"""Features kept of each token."""


class FeatureHistory:
    """The last features of each token, each with the time at which it was computed.

    Args:
        like: features of all tokens, shape ``(b, tokens, width)``: for shape, dtype and device.

    Attributes:
        features: newest first, shape ``(KEPT, b, tokens, width)``. times: theirs, shape ``(KEPT, b, tokens)``.
        count: how many of them there are, shape ``(b, tokens)``.
    """

    def __init__(self, like: Float[Tensor, "b tokens width"]) -> None:
        self.features = like.new_zeros((KEPT, *like.shape))
        self.times = torch.zeros((KEPT, *like.shape[:2]), device=like.device)
        self.count = torch.zeros(like.shape[:2], dtype=torch.long, device=like.device)

    def push(
        self, features: Float[Tensor, "b chosen width"], time: float, index: Int[Tensor, "b chosen"] | None
    ) -> None:
        """Keep features of the tokens ``index`` (None: of all of them) that were computed at ``time``."""
        if index is None:
            self.features = torch.cat([features[None], self.features[:-1]])
            self.times = torch.cat([torch.full_like(self.times[:1], time), self.times[:-1]])
            self.count = (self.count + 1).clamp(max=KEPT)
            return
        wide = index[..., None].expand(-1, -1, features.shape[-1])
        for age in reversed(range(1, KEPT)):
            self.features[age].scatter_(1, wide, self.features[age - 1].gather(1, wide))
            self.times[age].scatter_(1, index, self.times[age - 1].gather(1, index))
        self.features[0].scatter_(1, wide, features)
        self.times[0].scatter_(1, index, time)
        self.count.scatter_(1, index, (self.count.gather(1, index) + 1).clamp(max=KEPT))

    def weights(self, time: float, copied: Bool[Tensor, "b tokens"]) -> Float[Tensor, "kept b tokens"]:
        """Weights of the kept features at ``time``, newest first; they sum to 1. ``copied`` takes the newest alone."""
        rates = []
        for age in range(1, KEPT):
            there = (self.count > age) & ~copied
            gap = torch.where(there, self.times[0] - self.times[age], 1.0)
            rates.append(torch.where(there, math.exp(-age) / gap, 0.0))
        known = sum((self.count > age).to(self.times.dtype) * math.exp(-age) for age in range(1, KEPT))
        ahead = (time - self.times[0]) / torch.as_tensor(known).clamp(min=math.exp(-KEPT))
        forward = [ahead * rate for rate in rates]
        return torch.stack([1 + sum(forward, torch.zeros_like(ahead)), *(-each for each in forward)])

    def predict(self, time: float, copied: Bool[Tensor, "b tokens"]) -> Float[Tensor, "b tokens width"]:
        """Features expected at ``time``. Those computed at ``time`` itself come back as they are."""
        weights = self.weights(time, copied)[..., None]
        predicted = weights[0] * self.features[0]  # in float32 at least: the weights have to sum to 1
        for age in range(1, KEPT):
            predicted.addcmul_(weights[age].to(predicted.dtype), self.features[age].to(predicted.dtype))
        return predicted.to(self.features.dtype)


@dataclass(frozen=True)
class TokenLevel:
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


def choose_levels(log_importance: Float[Tensor, "b tokens"], count: int, copied: float) -> TokenLevel:
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
    return TokenLevel(chosen, mask)


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
        self.levels: TokenLevel | None = None
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
        """Positions of the queries of this evaluation in the joint sequence; None if they are all there."""
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
        """Attend from the computed tokens to all tokens.

        Args:
            layer: number of this attention; each has its own keys and values.
            query: of computed tokens and context, in the order of the joint sequence.
            key: likewise.
            value: likewise.
            layout: of that sequence.
            causal: whether a position sees only itself and those before.

        Returns:
            The outputs of the computed tokens and the context.
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


Current: TypeAlias = Callable[[], TokenCache]
"""The cache of the chain that goes on."""


def route_tokens(
    stack: ExitStack, first: nn.Module, last: nn.Module, current: Current, place: int | None = None
) -> None:
    """Let only chosen tokens into ``first``, and make all of them again behind ``last``, until ``stack`` is closed.

    Args:
        stack: of what is to be undone.
        first: the first block, called with hidden states as its first argument or as ``hidden_states``.
        last: the last block.
        current: the cache.
        place: where the hidden states are in the tuple that ``last`` returns; None: it returns them alone.
    """

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": current().enter(kwargs["hidden_states"])}
        return (current().enter(args[0]), *args[1:]), kwargs

    def leave(module: nn.Module, args: tuple[Any, ...], answer: Any) -> Any:
        if place is None:
            return current().leave(answer)
        return (*answer[:place], current().leave(answer[place]), *answer[place + 1 :])

    for handle in (first.register_forward_pre_hook(enter, with_kwargs=True), last.register_forward_hook(leave)):
        stack.callback(handle.remove)


def answer_attention(stack: ExitStack, attention: Any, kind: str, processor: Any) -> None:
    """Let ``processor`` answer for a diffusers attention until ``stack`` is closed.

    Raises:
        CachingError: what answers now is not diffusers' own ``kind``, and would be lost.
    """
    found = type(attention.processor).__name__
    if found != kind:
        raise CachingError(
            f"an attention of this network is processed by {found}; caching knows {kind}. Adapters, fused projections "
            "and other processors have to be taken out first"
        )
    stack.enter_context(replaced(attention, "processor", processor))
