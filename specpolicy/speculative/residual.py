"""The residual law of a rejected step, in one dimension.

Draft and target are unit Gaussians whose means lie ``v`` apart. Along the line that joins the means, with the target's
mean at 0, the draft's at v, and 0 < c ≤ 1, the residual has density (Soen et al., Prop. 3.1)::

    max(0, c φ(u) − φ(u − v)) / Z,      u ≤ u* = v/2 + ln(c)/v
    Z(c, v) = c Φ(u*) − Φ(u* − v),      F(u) = (c Φ(u) − Φ(u − v)) / Z

Everything is float64, with ``log_c`` in place of c. v = 0 has no residual (Z = 0).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.special import log_ndtr, ndtr

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_STEPS = 32
_TOLERANCE = 1e-9


def support_end(log_c: Float64[Tensor, "*n"], v: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """u*, the largest value that the residual takes."""
    return v / 2 + log_c / v


def mass(log_c: Float64[Tensor, "*n"], v: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Z(c, v) = ∫ max(0, c φ(u) − φ(u − v)) du, in [0, 1]; zero at v = 0."""
    safe = v.clamp(min=1e-12)
    end = support_end(log_c, safe)
    z = (log_c.exp() * ndtr(end) - ndtr(end - safe)).clamp(0.0, 1.0)
    return torch.where(v > 1e-12, z, 0.0)


def log_cumulative(
    u: Float64[Tensor, " n"], log_c: Float64[Tensor, " n"], v: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """ln(c Φ(u) − Φ(u − v)) for u ≤ u*; stable far out in the lower tail."""
    whole = log_c + log_ndtr(u)
    return whole + torch.log1p(-(log_ndtr(u - v) - whole).exp().clamp(max=1 - 1e-16))


def draw(
    uniform: Float64[Tensor, " n"], log_c: Float64[Tensor, " n"], v: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Solve F(u) = ``uniform`` for u.

    Newton's method for h(u) = √(−ln F(u)), which is nearly straight throughout: −ln F grows like u²/2 in the lower tail
    and like (u* − u)² at the upper end, where F itself would be flat. A bracket catches the rest by bisection. Two to
    four steps are the rule; where nobody may look at the numbers on the way (in a captured round) all are made.

    Args:
        uniform: in [0, 1). log_c: ln c, at most 0. v: positive.
    """
    v = v.clamp(min=1e-9)
    end = support_end(log_c, v)
    top = log_cumulative(end, log_c, v)
    want = (-uniform.clamp(min=1e-16).log()).sqrt()
    target = top - want.square()
    # Left of the root: G(u) = ln(cΦ(u) − Φ(u − v)) ≤ ln c + ln Φ(u), and Φ(u) ≤ exp(−u²/2)/2 for u ≤ 0.
    low = torch.minimum(-(2 * (log_c - target - math.log(2))).clamp(min=0).sqrt(), end)
    high, u = end, low
    for _ in range(_STEPS):
        value = log_cumulative(u, log_c, v)
        log_density = (
            log_c - u * u / 2 - _LOG_SQRT_2PI + torch.log(-torch.expm1((u * v - v * v / 2 - log_c).clamp(max=0)))
        )
        below = value <= target
        low, high = torch.where(below, u, low), torch.where(below, high, u)
        have = (top - value).clamp(min=0).sqrt()
        moved = u + 2 * have * (have - want) * (value - log_density).exp()
        moved = torch.where((moved >= low) & (moved <= high), moved, (low + high) / 2)
        step, u = moved - u, moved
        if _may_look() and bool((step.abs() <= _TOLERANCE).all()):
            break
    return u


def _may_look() -> bool:
    """Whether numbers can be read without breaking a compiler's trace or a CUDA graph's capture."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
