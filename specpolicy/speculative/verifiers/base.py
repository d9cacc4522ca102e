"""What a verifier is asked and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

_EQUAL = 1e-9
_FAR = 1e6


@dataclass(frozen=True)
class Comparison:
    """Drafted against target steps, for n chains and windows of up to w steps.

    Step i was drafted from N(m_D, σ²I) with noise ξ, while the target is N(m_T, σ²I). With D = (m_D − m_T)/σ:

    Attributes:
        distance: v = ‖D‖, shape ``(n, w)``; 0 where draft and target agree (below 1e-9), at most 1e6.
        along: D·ξ/v, the drafted noise along the line from target to draft, shape ``(n, w)``; 0 where v is.
        length: steps of each chain that count; columns beyond are padding.
    """

    distance: Float64[Tensor, "n w"]
    along: Float64[Tensor, "n w"]
    length: Int[Tensor, " n"]

    @staticmethod
    def of(difference: Tensor, noise: Tensor, length: Tensor) -> Comparison:
        """Measure D, ``(n, w, *event)``, against the noise ξ of the same shape; always in float64."""
        d, xi = difference.flatten(2).double(), noise.flatten(2).double()
        v = torch.linalg.vector_norm(d, dim=-1)
        along = torch.where(v > _EQUAL, (d * xi).sum(-1) / v.clamp(min=_EQUAL), 0.0)
        v = torch.where(v > _EQUAL, v, 0.0).clamp(max=_FAR)
        return Comparison(v, along, length)

    @property
    def valid(self) -> Bool[Tensor, "n w"]:
        """Which columns are not padding."""
        return torch.arange(self.distance.shape[1], device=self.length.device) < self.length[:, None]

    @property
    def log_ratio(self) -> Float64[Tensor, "n w"]:
        """ln(target density / draft density) at the drafted point: −v (e·ξ) − v²/2."""
        return -self.distance * self.along - self.distance.square() / 2


@dataclass(frozen=True)
class Verdict:
    """How far each chain's draft is kept.

    Attributes:
        accepted: τ, the number of drafted steps kept, shape ``(n,)``, 0 … length.
        log_scale: ln c of the residual that step τ + 1 is drawn from, shape ``(n,)``; 0 is c = 1.
    """

    accepted: Int[Tensor, " n"]
    log_scale: Float64[Tensor, " n"]


@dataclass(frozen=True)
class Rejection:
    """What is known of the steps to be repaired, one for each of n chains; all of shape ``(n,)``.

    Attributes:
        distance, along: v and e·ξ of the rejected step; see :class:`Comparison`.
        log_scale: ln c; see :class:`Verdict`.
        uniform: a fresh number in [0, 1).
    """

    distance: Float64[Tensor, " n"]
    along: Float64[Tensor, " n"]
    log_scale: Float64[Tensor, " n"]
    uniform: Float64[Tensor, " n"]


class Verifier(ABC):
    """Decides how many drafted steps are kept and repairs the first one that is not.

    Attributes:
        exact: whether the law of the chain is exactly that of the sequential sampler.
        causal: whether no decision depends on noises of later steps. A repair then keeps the part of the rejected
            noise that is orthogonal to e, and the noises beyond the rejected step may be drafted with again.
    """

    exact: bool = True
    causal: bool = False

    @abstractmethod
    def judge(self, comparison: Comparison, uniform: Float64[Tensor, "n w"]) -> Verdict:
        """Decide τ for every chain, with one uniform number in [0, 1) for each step."""

    @abstractmethod
    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """Noise coordinate along e, measured from the target's mean, that replaces the rejected step's."""


class StepwiseVerifier(Verifier):
    """Sample verification: go step by step and stop at the first with ln U > ln(target/draft)."""

    causal = True

    def judge(self, comparison: Comparison, uniform: Float64[Tensor, "n w"]) -> Verdict:
        """Count the steps before the first rejection; its residual has c = 1."""
        kept = (uniform.log() <= comparison.log_ratio) | (comparison.distance == 0)
        accepted = (kept & comparison.valid).cumprod(dim=1).sum(dim=1)
        return Verdict(accepted, torch.zeros_like(accepted, dtype=torch.float64))
