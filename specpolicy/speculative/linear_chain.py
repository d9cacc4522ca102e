"""Multi-step transitions of the chain, for x̂0 that are known beforehand.

The chain is then linear in the start x, in the x̂0_i and in the noises ξ_i::

    x_{k+j} = P(k, k+j) x + Σ_{i<j} P(k+i+1, k+j) (b_{k+i} x̂0_{k+i} + σ_{k+i} ξ_i),    P(i, j) = a_i a_{i+1} ⋯ a_{j−1}

so a whole window is drafted by one small matrix product, not step by step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.speculative.process import ReverseProcess


def affine_scan(
    scale: Float[Tensor, "n w r"], shift: Float[Tensor, "n w r"], start: Float[Tensor, "n r"]
) -> Float[Tensor, "n w1 r"]:
    """Compute c_0 = start, c_{j+1} = scale_j c_j + shift_j, number by number.

    The affine maps of neighbouring steps are composed in pairs, then pairs of pairs (Hillis and Steele 1986): about
    log2(w) operations on whole windows, so that a device does not wait for w launches.

    Args:
        scale: shape ``(n, w, r)``.
        shift: shape ``(n, w, r)``.
        start: shape ``(n, r)``.

    Returns:
        c_0 … c_w, shape ``(n, w + 1, r)``.
    """
    slope, offset = scale, torch.cat([shift[:, :1] + scale[:, :1] * start[:, None], shift[:, 1:]], dim=1)
    reach, window = 1, scale.shape[1]
    while reach < window:
        # Step j already covers ``reach`` maps ending at j; the map that ends at j − reach goes first.
        earlier = slice(None, window - reach)
        later = slice(reach, None)
        offset = torch.cat([offset[:, :reach], torch.addcmul(offset[:, later], slope[:, later], offset[:, earlier])], 1)
        slope = torch.cat([slope[:, :reach], slope[:, later] * slope[:, earlier]], dim=1)
        reach *= 2
    return torch.cat([start[:, None], offset], dim=1)


class MultiStepTransition:
    """The products P of one process, and what follows from them.

    Args:
        process: on the device and in the dtype of the states.
    """

    def __init__(self, process: ReverseProcess) -> None:
        self.process = process
        steps = process.num_steps
        a = process.a.double()
        index = torch.arange(steps + 1, device=a.device)
        # Row i holds 1 up to column i and a_{j-1} beyond; its running product is P(i, j) for j >= i.
        factors = torch.where(index[None, :] > index[:, None], torch.cat([a.new_ones(1), a])[None, :], a.new_ones(1))
        products = torch.where(index[None, :] >= index[:, None], factors.cumprod(dim=1), 0.0)
        self.products = products.to(process.a.dtype)
        # drifts[i, j] = Σ_{i<=m<j} P(m+1, j) b_m: what one constant x̂0 adds on the way from i to j.
        terms = (products[1:] * process.b.double()[:, None]).flip(0).cumsum(dim=0).flip(0)
        self.drifts = torch.cat([terms, torch.zeros_like(terms[:1])]).to(process.a.dtype)

    def draft(
        self,
        k: Int[Tensor, " n"],
        x: Float[Tensor, "n ..."],
        x0: Float[Tensor, "n ..."],
        noise: Float[Tensor, "n w ..."],
    ) -> Float[Tensor, "n w1 ..."]:
        """Draft w steps under a constant x̂0.

        Args:
            k: position of each start, shape ``(n,)``.
            x: the starts, shape ``(n, *event)``.
            x0: the constant x̂0 of each, shape ``(n, *event)``.
            noise: one draw for each drafted step, shape ``(n, w, *event)``.

        Returns:
            x_k … x_{k+w}, shape ``(n, w + 1, *event)``; columns past the end of the chain are padding.
        """
        weights, which = self._weights(k, noise.shape[1])
        drift = (weights * self.process.b[which][:, None, :]).sum(dim=-1)
        moved = torch.bmm(weights * self.process.sigma[which][:, None, :], noise.flatten(2))
        flat = (
            self._decay(k, noise.shape[1])[..., None] * x.flatten(1)[:, None]
            + drift[..., None] * x0.flatten(1)[:, None]
        )
        return (flat + moved).view(len(x), -1, *x.shape[1:])

    def draft_per_step(
        self,
        k: Int[Tensor, " n"],
        x: Float[Tensor, "n ..."],
        x0: Float[Tensor, "n w ..."],
        noise: Float[Tensor, "n w ..."],
    ) -> Float[Tensor, "n w1 ..."]:
        """Draft w steps, each under an x̂0 of its own.

        Args:
            k: position of each start, shape ``(n,)``.
            x: the starts, shape ``(n, *event)``.
            x0: x̂0 of each step, shape ``(n, w, *event)``; one that is not finite counts as 0, so that the steps before
                it stay what they are.
            noise: one draw for each drafted step, shape ``(n, w, *event)``.

        Returns:
            x_k … x_{k+w}, shape ``(n, w + 1, *event)``; columns past the end of the chain are padding.
        """
        weights, which = self._weights(k, noise.shape[1])
        b, sigma = self.process.b[which][..., None], self.process.sigma[which][..., None]
        finite = x0.flatten(2).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        moved = torch.bmm(weights, b * finite + sigma * noise.flatten(2))
        flat = self._decay(k, noise.shape[1])[..., None] * x.flatten(1)[:, None] + moved
        return flat.view(len(x), -1, *x.shape[1:])

    def mean(
        self,
        begin: Int[Tensor, " n"],
        end: Int[Tensor, " n"],
        x: Float[Tensor, "n ..."],
        x0: Float[Tensor, "n ..."],
    ) -> Float[Tensor, "n ..."]:
        """Compute the mean of x_end given x_begin, under a constant x̂0.

        Args:
            begin: position of each start, shape ``(n,)``.
            end: position of each end, at least ``begin``, shape ``(n,)``.
            x: the starts, shape ``(n, *event)``.
            x0: the constant x̂0 of each, shape ``(n, *event)``.

        Returns:
            Shape ``(n, *event)``.
        """
        return self.mean_at(begin, end[:, None], x, x0)[:, 0]

    def mean_at(
        self,
        begin: Int[Tensor, " n"],
        ends: Int[Tensor, "n w"],
        x: Float[Tensor, "n ..."],
        x0: Float[Tensor, "n ..."],
    ) -> Float[Tensor, "n w ..."]:
        """Compute the means at several ends of each chain.

        Args:
            begin: position of each start, shape ``(n,)``.
            ends: positions, shape ``(n, w)``.
            x: the starts, shape ``(n, *event)``.
            x0: the constant x̂0 of each, shape ``(n, *event)``.

        Returns:
            Shape ``(n, w, *event)``.
        """
        shape = (*ends.shape, *[1] * (x.ndim - 1))
        decay, drift = (table[begin[:, None], ends].view(shape) for table in (self.products, self.drifts))
        return decay * x[:, None] + drift * x0[:, None]

    def _weights(self, k: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """P(k+i+1, k+j) for i < j, shape ``(n, w + 1, w)``, and the position k + i of each step, ``(n, w)``."""
        last, step = self.process.num_steps, torch.arange(window, device=k.device)
        end = self._end(k, window)
        after = (k[:, None] + step + 1).clamp(max=last)
        weights = self.products[after[:, None, :], end[:, :, None]]
        weights = weights * (step[None, None, :] < torch.arange(window + 1, device=k.device)[None, :, None])
        return weights, (k[:, None] + step).clamp(max=last - 1)

    def _decay(self, k: Tensor, window: int) -> Tensor:
        return self.products[k[:, None].expand(-1, window + 1), self._end(k, window)]

    def _end(self, k: Tensor, window: int) -> Tensor:
        return (k[:, None] + torch.arange(window + 1, device=k.device)).clamp(max=self.process.num_steps)


def max_draft_lengths(process: ReverseProcess) -> Int[Tensor, " k"]:
    """Count the steps that can be drafted from each position: an unbroken run with σ > 0, without the chain's last.

    A round makes one step more than it keeps of its draft, so that at most K − 1 − k steps are drafted from position k:
    k + drafted + 1 ≤ K whatever is kept.

    Args:
        process: of any device and dtype.

    Returns:
        One count for each position, from 0 to K − 1 − k.
    """
    counts = [0] * process.num_steps
    noisy = (process.sigma > 0).tolist()
    for k in range(process.num_steps - 2, -1, -1):
        counts[k] = counts[k + 1] + 1 if noisy[k] else 0
    return torch.tensor(counts, device=process.sigma.device)
