"""Block verification: all steps of a window are judged together."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from .. import residual
from .base import Comparison, Rejection, Verdict, Verifier
from .residual import residual_repair


class BlockVerifier(Verifier):
    """Keep the longest prefix that the joint likelihood ratio allows (Sun et al.; for diffusions Soen et al.).

    With ℓ_0 = 0, ℓ_i = min(0, ℓ_{i−1} + ln(target/draft)_i) and p_i = exp ℓ_i::

        h_i = Z(p_i, v_{i+1}) / (Z(p_i, v_{i+1}) + 1 − p_i)  for i < γ,     h_γ = p_γ
        τ = the largest i with U_i ≤ h_i

    and step τ + 1 is drawn from the residual with c = p_τ. Exact, and accepts at least as
    much as any verification that stops at the first rejection. τ depends on all noises of the window, so none of the
    later ones may be used again.
    """

    def judge(self, comparison: Comparison, uniform: Float64[Tensor, "n w"]) -> Verdict:
        """Find τ; see :class:`Verifier`. ``uniform`` column i − 1 holds U_i."""
        n, width = comparison.distance.shape
        start = comparison.distance.new_zeros(n, 1)
        # min(0, ℓ + d) from 0 on is a running sum minus its running maximum: no loop.
        total = torch.cat([start, comparison.log_ratio.cumsum(dim=1)], dim=1)
        log_p = total - total.cummax(dim=1).values  # ℓ_0 … ℓ_w
        z = residual.mass(log_p[:, :-1], comparison.distance)  # Z(p_i, v_{i+1}), i = 0 … w − 1
        miss = -torch.expm1(log_p)
        inner = torch.where(miss[:, :-1] > 0, z / (z + miss[:, :-1]).clamp(min=1e-300), 1.0)
        step = torch.arange(width + 1, device=z.device)
        last = step == comparison.length[:, None]
        chance = torch.where(last, log_p.exp(), torch.cat([inner, torch.ones_like(start)], dim=1))
        hit = (uniform <= chance[:, 1:]) & comparison.valid
        accepted = (hit * step[1:]).amax(dim=1)
        return Verdict(accepted, log_p.gather(1, accepted[:, None]).squeeze(1))

    def repair(self, rejection: Rejection) -> Float64[Tensor, " n"]:
        """A residual draw with c = p_τ."""
        return residual_repair(rejection)
