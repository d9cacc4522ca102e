"""Verification of drafted windows: how many steps are accepted, and how the first rejected one is repaired."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torch.special import log_ndtr, ndtr

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_NEWTON_STEPS = 32
_TOLERANCE = 1e-9
_NO_OVERLAP = 60.0
"""Distance from which on a residual is the target's own normal distribution to the last bit."""


def residual_support_end(log_c: Float64[Tensor, "*n"], v: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Compute u*, the largest value that the residual takes.

    Args:
        log_c: ln c, at most 0.
        v: distance of draft and target, positive.

    Returns:
        u*, of the same shape.
    """
    return v / 2 + log_c / v


def residual_mass(log_c: Float64[Tensor, "*n"], v: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Compute Z(c, v) = ∫ max(0, c φ(u) − φ(u − v)) du.

    Args:
        log_c: ln c, at most 0.
        v: distance of draft and target, 0 or more.

    Returns:
        Z in [0, 1], zero at v = 0.
    """
    safe = v.clamp(min=1e-12)
    end = residual_support_end(log_c, safe)
    z = (log_c.exp() * ndtr(end) - ndtr(end - safe)).clamp(0.0, 1.0)
    return torch.where(v > 1e-12, z, 0.0)


def residual_log_cdf(
    u: Float64[Tensor, " n"], log_c: Float64[Tensor, " n"], v: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Compute ln(c Φ(u) − Φ(u − v)), stable far out in the lower tail.

    Args:
        u: at most u*, shape ``(n,)``.
        log_c: ln c, at most 0, shape ``(n,)``.
        v: distance of draft and target, positive, shape ``(n,)``.

    Returns:
        Shape ``(n,)``.
    """
    whole = log_c + log_ndtr(u)
    return whole + torch.log1p(-(log_ndtr(u - v) - whole).exp().clamp(max=1 - 1e-16))


def draw_residual(
    uniform: Float64[Tensor, " n"], log_c: Float64[Tensor, " n"], v: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Solve F(u) = ``uniform`` for u.

    Newton's method for h(u) = √(−ln F(u)), which is nearly straight throughout: −ln F grows like u²/2 in the lower tail
    and like (u* − u)² at the upper end, where F itself would be flat. A bracket catches the rest by bisection. Two to
    four steps are the rule; where nobody may look at the numbers on the way (in a captured round) all are made.

    Args:
        uniform: in [0, 1), shape ``(n,)``.
        log_c: ln c, at most 0, shape ``(n,)``.
        v: distance of draft and target, positive, shape ``(n,)``.

    Returns:
        u, shape ``(n,)``.
    """
    v = v.clamp(min=1e-9, max=_NO_OVERLAP)
    end = residual_support_end(log_c, v)
    top = residual_log_cdf(end, log_c, v)
    want = (-uniform.clamp(min=1e-16).log()).sqrt()
    target = top - want.square()
    # Left of the root: G(u) = ln(cΦ(u) − Φ(u − v)) ≤ ln c + ln Φ(u), and Φ(u) ≤ exp(−u²/2)/2 for u ≤ 0.
    low = torch.minimum(-(2 * (log_c - target - math.log(2))).clamp(min=0).sqrt(), end)
    high, u = end, low
    for _ in range(_NEWTON_STEPS):
        value = residual_log_cdf(u, log_c, v)
        log_density = (
            log_c - u * u / 2 - _LOG_SQRT_2PI + torch.log(-torch.expm1((u * v - v * v / 2 - log_c).clamp(max=0)))
        )
        below = value <= target
        low, high = torch.where(below, u, low), torch.where(below, high, u)
        have = (top - value).clamp(min=0).sqrt()
        moved = u + 2 * have * (have - want) * (value - log_density).exp()
        # Far in the upper tail F rounds to 1, have to 0, and Newton's step to none: bisection goes on from there.
        usable = (moved >= low) & (moved <= high) & ((have > 0) | (want < _TOLERANCE))
        moved = torch.where(usable, moved, (low + high) / 2)
        step, u = moved - u, moved
        if _may_sync() and bool((step.abs() <= _TOLERANCE).all()):
            break
    return u


def _may_sync() -> bool:
    """Whether numbers can be read without breaking a compiler's trace or a CUDA graph's capture."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


_EQUAL = 1e-9
_FAR = 1e6


@dataclass(frozen=True)
class DraftTargetGap:
    """Drafted against target steps, for n chains and windows of up to w steps.

    Step i was drafted from N(m_D, σ²I) with noise ξ, while the target is N(m_T, σ²I). With D = (m_D − m_T)/σ:

    Attributes:
        distance: v = ‖D‖, shape ``(n, w)``; 0 where draft and target agree (below 1e-9), at most 1e6.
        along: D·ξ/v, the drafted noise along the line from target to draft, shape ``(n, w)``; 0 where v is.
        length: steps of each chain that count; columns beyond are padding.
    """

    distance: Float64[Tensor, "n w"]
    noise_along_gap: Float64[Tensor, "n w"]
    length: Int[Tensor, " n"]

    @staticmethod
    def of(difference: Tensor, noise: Tensor, length: Tensor) -> DraftTargetGap:
        """Measure D, ``(n, w, *event)``, against the noise ξ of the same shape; always in float64."""
        d, xi = difference.flatten(2).double(), noise.flatten(2).double()
        v = torch.linalg.vector_norm(d, dim=-1)
        along = torch.where(v > _EQUAL, (d * xi).sum(-1) / v.clamp(min=_EQUAL), 0.0)
        v = torch.where(v > _EQUAL, v, 0.0).clamp(max=_FAR)
        return DraftTargetGap(v, along, length)

    @property
    def valid(self) -> Bool[Tensor, "n w"]:
        """Mask of the columns that are not padding."""
        return torch.arange(self.distance.shape[1], device=self.length.device) < self.length[:, None]

    @property
    def log_ratio(self) -> Float64[Tensor, "n w"]:
        """ln(target density / draft density) at the drafted point: −v (e·ξ) − v²/2."""
        return -self.distance * self.noise_along_gap - self.distance.square() / 2


@dataclass(frozen=True)
class AcceptedPrefix:
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
        distance, along: v and e·ξ of the rejected step; see :class:`DraftTargetGap`.
        log_scale: ln c; see :class:`AcceptedPrefix`.
        uniform: a fresh number in [0, 1).
    """

    distance: Float64[Tensor, " n"]
    noise_along_gap: Float64[Tensor, " n"]
    log_scale: Float64[Tensor, " n"]
    uniform: Float64[Tensor, " n"]


class Verifier(ABC):
    """Decides how many drafted steps are kept and repairs the first one that is not.

    Attributes:
        exact: whether the distribution of the chain is exactly that of the sequential sampler.
        causal: whether no decision depends on noises of later steps. A repair then keeps the part of the rejected
            noise that is orthogonal to e, and the noises beyond the rejected step may be drafted with again.
    """

    exact: bool = True
    causal: bool = False

    @abstractmethod
    def judge(self, comparison: DraftTargetGap, uniform: Float64[Tensor, "n w"]) -> AcceptedPrefix:
        """Decide how many drafted steps of each chain are accepted.

        Args:
            comparison: draft against target, for n chains and windows of up to w steps.
            uniform: one number in [0, 1) for each step, shape ``(n, w)``.

        Returns:
            The accepted prefixes.
        """

    @abstractmethod
    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """Draw the noise coordinate along e, measured from the target's mean, that replaces the rejected step's.

        Args:
            rejection: of n chains.

        Returns:
            Shape ``(n,)``.
        """


class StepwiseVerifier(Verifier):
    """Sample verification: go step by step and stop at the first with ln U > ln(target/draft)."""

    causal = True

    def judge(self, comparison: DraftTargetGap, uniform: Float64[Tensor, "n w"]) -> AcceptedPrefix:
        """Count the steps before the first rejection; its residual has c = 1."""
        kept = (uniform.log() <= comparison.log_ratio) | (comparison.distance == 0)
        accepted = (kept & comparison.valid).cumprod(dim=1).sum(dim=1)
        return AcceptedPrefix(accepted, torch.zeros_like(accepted, dtype=torch.float64))


class ReflectionVerifier(StepwiseVerifier):
    """Judge step by step; mirror the first rejected noise in the plane between the two means.

    y = m_T + σ(ξ − 2(e·ξ)e), the reflection-maximal coupling (De Bortoli et al.; the Gaussian rejection sampler of
    ASD). Exact, and needs no new random numbers.
    """

    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """Mirror the coordinate."""
        return -rejection.noise_along_gap


def residual_repair(rejection: Rejection) -> Float64[Tensor, " n"]:
    """Draw a coordinate from the residual max(0, c · target − draft), normalized (Soen et al., Prop. 3.1).

    Args:
        rejection: of n chains.

    Returns:
        Shape ``(n,)``.
    """
    return draw_residual(rejection.uniform, rejection.log_scale, rejection.distance)


class ResidualVerifier(StepwiseVerifier):
    """Judge step by step; draw the first rejected step from max(0, target − draft), normalized. Exact."""

    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """Draw from the residual with c = 1."""
        return residual_repair(rejection)


class BlockVerifier(Verifier):
    """Keep the longest prefix that the joint likelihood ratio allows (Sun et al.; for diffusions Soen et al.).

    With ℓ_0 = 0, ℓ_i = min(0, ℓ_{i−1} + ln(target/draft)_i) and p_i = exp ℓ_i::

        h_i = Z(p_i, v_{i+1}) / (Z(p_i, v_{i+1}) + 1 − p_i)  for i < γ,     h_γ = p_γ
        τ = the largest i with U_i ≤ h_i

    and step τ + 1 is drawn from the residual with c = p_τ. Exact, and accepts at least as
    much as any verification that stops at the first rejection. τ depends on all noises of the window, so none of the
    later ones may be used again.
    """

    def judge(self, comparison: DraftTargetGap, uniform: Float64[Tensor, "n w"]) -> AcceptedPrefix:
        """Find τ; see :class:`Verifier`. ``uniform`` column i − 1 holds U_i."""
        n, width = comparison.distance.shape
        start = comparison.distance.new_zeros(n, 1)
        # min(0, ℓ + d) from 0 on is a running sum minus its running maximum: no loop.
        total = torch.cat([start, comparison.log_ratio.cumsum(dim=1)], dim=1)
        log_p = total - total.cummax(dim=1).values  # ℓ_0 … ℓ_w
        z = residual_mass(log_p[:, :-1], comparison.distance)  # Z(p_i, v_{i+1}), i = 0 … w − 1
        rest = -torch.expm1(log_p)  # 1 − p_i
        inner = torch.where(rest[:, :-1] > 0, z / (z + rest[:, :-1]).clamp(min=1e-300), 1.0)
        step = torch.arange(width + 1, device=z.device)
        last = step == comparison.length[:, None]
        chance = torch.where(last, log_p.exp(), torch.cat([inner, torch.ones_like(start)], dim=1))
        hit = (uniform <= chance[:, 1:]) & comparison.valid
        accepted = (hit * step[1:]).amax(dim=1)
        return AcceptedPrefix(accepted, log_p.gather(1, accepted[:, None]).squeeze(1))

    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """Draw from the residual with c = p_τ."""
        return residual_repair(rejection)
