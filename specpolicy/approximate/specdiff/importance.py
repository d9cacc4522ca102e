"""Counting arithmetic instead of trusting formulas for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


class CachingError(ValueError):
    """A network, a pipeline or the order of its evaluations does not fit token caching; the message says why."""


@dataclass(frozen=True)
class CacheSettings:
    """Settings of token caching. Nothing but ``ratio=0`` leaves samples as they are.

    Attributes:
        ratio: share of the tokens that an evaluation takes from the cache, 0 to 1; at least one is always computed.
        copied: share of the importance, 0 to 1, that the least important tokens hold together whose features are
            copied; other cached ones are extrapolated. 0 extrapolates all of them, 1 copies them all. Published: 0.1.
        speculative: evaluations ahead of the chain to see which tokens will be attended to later. 0 goes without.
            Published: 2.

    Raises:
        ValueError: a setting is out of its range.
    """

    ratio: float = 0.5
    copied: float = 0.1
    speculative: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}; the share of cached tokens is 0 or more and below 1")
        if not 0 <= self.copied <= 1:
            raise ValueError(f"copied={self.copied}; a share of the importance is 0 to 1")
        if self.speculative < 0:
            raise ValueError(f"speculative={self.speculative}; evaluations ahead of the chain are 0 or more")

    def computed(self, tokens: int) -> int:
        """Count the tokens that an evaluation computes.

        Args:
            tokens: of the network.

        Returns:
            At least 1.
        """
        return max(1, tokens - int(self.ratio * tokens + 1e-9))


FLOOR = 1e-3
"""Least score, relative to the mean of the row. Without one a token that nobody looked at (the last one under a causal
mask, once its own query is not computed) has importance 0, which no starvation can raise."""


def log_importance(
    history: Float[Tensor, "b tokens"], future: Float[Tensor, "b tokens"] | None, served: Int[Tensor, "b tokens"]
) -> Float[Tensor, "b tokens"]:
    """Logarithm of the importance of each token; only differences within a row mean something.

    Args:
        history: attention received at the previous step, 0 or more.
        future: likewise at the nearest speculative step; None leaves the factor out.
        served: how often each token has come from the cache since it was last computed.
    """
    log = _log_score(history) + served.to(history.dtype)
    return log if future is None else log + _log_score(future)


def _log_score(received: Float[Tensor, "b tokens"]) -> Float[Tensor, "b tokens"]:
    tiny = torch.finfo(received.dtype).tiny  # a row of zeros says that all tokens are alike
    return torch.log(received / received.mean(-1, keepdim=True).clamp(min=tiny) + FLOOR)


@runtime_checkable
class DenoisingTrajectory(Protocol):
    """How a state moves along a trajectory if the network's answer is taken at its word."""

    def jump(self, x: Float[Tensor, "b ..."], output: Float[Tensor, "b ..."], now: float, then: float) -> Tensor:
        """The state at time ``then``, from ``x`` at ``now`` where the network says ``output``; scheduler's times."""
        ...


@dataclass(frozen=True)
class VariancePreserving:
    """x = √ᾱ x̂0 + √(1 − ᾱ) ε: a DDIM step (Song et al. 2021, equation 12, η = 0) of any length.

    Attributes:
        alpha_bars: ᾱ of the times 0 … T − 1. kind: what the network predicts, as diffusers names it.
    """

    alpha_bars: Float[Tensor, " times"]
    kind: str

    def jump(self, x: Float[Tensor, "b ..."], output: Float[Tensor, "b ..."], now: float, then: float) -> Tensor:
        """See :class:`DenoisingTrajectory`."""
        (signal, noise), (signal_then, noise_then) = self._scales(now), self._scales(then)
        if self.kind == "epsilon":
            epsilon = output
            x0 = (x - noise * epsilon) / signal
        elif self.kind == "sample":
            x0 = output
            epsilon = (x - signal * x0) / noise
        else:
            x0, epsilon = signal * x - noise * output, noise * x + signal * output
        return signal_then * x0 + noise_then * epsilon

    def _scales(self, time: float) -> tuple[float, float]:
        """√ᾱ and √(1 − ᾱ) at the whole time nearest to ``time``."""
        alpha_bar = float(self.alpha_bars[min(len(self.alpha_bars) - 1, max(0, round(time)))])
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


@dataclass(frozen=True)
class Flow:
    """x = (1 − σ) x0 + σ ε and v = ε − x0 (rectified flow): a straight line.

    Attributes:
        times: the scheduler's time at σ = 1.
    """

    times: float

    def jump(self, x: Float[Tensor, "b ..."], output: Float[Tensor, "b ..."], now: float, then: float) -> Tensor:
        """See :class:`DenoisingTrajectory`."""
        return x + (then - now) / self.times * output


def trajectory_of(scheduler: Any) -> DenoisingTrajectory:
    """The course of a diffusers scheduler, by its configuration.

    Raises:
        CachingError: it is of neither kind.
    """
    config: Any = getattr(scheduler, "config", None)
    if "FlowMatch" in type(scheduler).__name__:
        return Flow(float(config.num_train_timesteps))
    kind = getattr(config, "prediction_type", None)
    if hasattr(scheduler, "alphas_cumprod") and kind in ("epsilon", "sample", "v_prediction"):
        return VariancePreserving(scheduler.alphas_cumprod, kind)
    raise CachingError(
        f"no way ahead is known for {type(scheduler).__name__}: neither flow matching nor a noise schedule with ε, x0 "
        "or v prediction. With speculative=0 caching goes without"
    )


def look_ahead_steps(times: Sequence[float], count: int) -> list[float]:
    """Choose the later times of a chain to look ahead to: the middles of ``count`` equal parts, without the first time.

    Args:
        times: all times of the chain, in order.
        count: 0 or more.

    Returns:
        At most ``count`` times; fewer where the chain is short.
    """
    later = range(1, len(times))
    places = [int((part + 0.5) * len(times) / count) for part in range(count)]
    return [times[place] for place in sorted({place for place in places if place in later})]


_FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _fused(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]


def count_operations(call: Callable[[], Any]) -> int:
    """Multiplications and additions of all matrix products, convolutions and attentions that ``call()`` makes.

    Counted by torch's dispatcher as they happen; element-wise arithmetic is not in them.
    """
    counter: Any = FlopCounterMode(display=False, custom_mapping={_FUSED_ON_CPU: _fused})
    with counter:
        call()
    return int(counter.get_total_flops())
