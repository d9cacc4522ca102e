"""Looking ahead: a few coarse steps of the same network over the trajectory.

Attention at the same time is alike from one run over a trajectory to another, even if one of them is coarse (SpecDiff,
Pan et al. 2025). So the network's own answer at the first state is followed to a few later times, and the network is
asked there, once each; only the attention that its tokens receive is kept. Each row of a batch goes by itself, that is,
without guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from .settings import CachingError


@runtime_checkable
class Course(Protocol):
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
        """See :class:`Course`."""
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
        """See :class:`Course`."""
        return x + (then - now) / self.times * output


def course_of(scheduler: Any) -> Course:
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


def looks(times: Sequence[float], count: int) -> list[float]:
    """Which later times of a chain to look at: the middles of ``count`` equal parts, the first time left out.

    Args:
        times: all times of the chain, in order. count: 0 or more; fewer come back where the chain is short.
    """
    later = range(1, len(times))
    places = [int((part + 0.5) * len(times) / count) for part in range(count)]
    return [times[place] for place in sorted({place for place in places if place in later})]
