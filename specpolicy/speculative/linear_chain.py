"""Many steps of the chain at once, when x̂0 is held constant.

With x̂0 = f throughout, the chain is linear in the start x, in f and in the noises ξ_i::

    x_{k+j} = P(k, k+j) x + Σ_{i<j} P(k+i+1, k+j) (b_{k+i} f + σ_{k+i} ξ_i),      P(i, j) = a_i a_{i+1} ⋯ a_{j−1}

so a whole window is drafted by one small matrix product, not step by step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .process import ReverseProcess


class LinearChain:
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
        products = factors.cumprod(dim=1)
        self.products = torch.where(index[None, :] >= index[:, None], products, 0.0).to(process.a.dtype)

    def draft(
        self,
        k: Int[Tensor, " n"],
        x: Float[Tensor, "n ..."],
        x0: Float[Tensor, "n ..."],
        noise: Float[Tensor, "n w ..."],
    ) -> Float[Tensor, "n w1 ..."]:
        """States x_k … x_{k+w} under constant ``x0``; columns past the end of the chain are padding.

        Args:
            k: position of each start. x: the starts. x0: the held x̂0.
            noise: one draw for each drafted step.
        """
        window, last = noise.shape[1], self.process.num_steps
        step = torch.arange(window, device=x.device)
        begin = k[:, None].expand(-1, window + 1)
        end = (k[:, None] + torch.arange(window + 1, device=x.device)).clamp(max=last)
        after = (k[:, None] + step + 1).clamp(max=last)
        which = (k[:, None] + step).clamp(max=last - 1)
        weights = self.products[after[:, None, :], end[:, :, None]]  # (n, w + 1, w)
        weights = weights * (step[None, None, :] < torch.arange(window + 1, device=x.device)[None, :, None])
        drift = (weights * self.process.b[which][:, None, :]).sum(dim=-1)
        decay = self.products[begin, end]
        kicks = torch.bmm(weights * self.process.sigma[which][:, None, :], noise.flatten(2))
        flat = decay[..., None] * x.flatten(1)[:, None] + drift[..., None] * x0.flatten(1)[:, None] + kicks
        return flat.view(len(x), window + 1, *x.shape[1:])


def reach(process: ReverseProcess) -> Int[Tensor, " k"]:
    """How many steps from each position on can be drafted: those with σ > 0 in an unbroken run."""
    counts = [0] * (process.num_steps + 1)
    noisy = (process.sigma > 0).tolist()
    for k in range(process.num_steps - 1, -1, -1):
        counts[k] = counts[k + 1] + 1 if noisy[k] else 0
    return torch.tensor(counts[:-1], device=process.sigma.device)
