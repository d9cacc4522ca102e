"""ParaDiGMS: Picard iteration over a window of a chain (Shih et al. 2023). Approximate: it stops at a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specpolicy import ReverseProcess, SampleResult
from specpolicy.speculative.denoiser import gather_rows
from specpolicy.speculative.process import per_row
from specpolicy.speculative.random_streams import ChainGenerators


class PicardSampler:
    """A window of states is guessed, all drifts in it are computed in one pass, and the states are summed up anew.

    The noises of all steps are drawn first, so that the chain has a fixed point; the window moves on over the states
    whose last change, squared and averaged over the event, is below ``tolerance`` times the step's variance.

    Args:
        process: the chain. window: states that are iterated at once. tolerance: of the published policies, 0.1.
    """

    exact = False

    def __init__(self, process: ReverseProcess, window: int = 25, tolerance: float = 0.1) -> None:
        self.process, self.window, self.tolerance = process, window, tolerance

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Any,
        noise: Tensor,
        cond: Any = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        record: bool = False,
    ) -> SampleResult:
        """Sample one chain after another for each row of ``noise``; no trajectory is kept."""
        random = ChainGenerators(generator, len(noise), noise.device, noise.dtype)
        kicks = torch.stack([random.noise(noise.shape[1:]) for _ in range(self.process.num_steps)])
        process, samples, passes, rows = self.process.to(noise.device, noise.dtype), [], [], []
        for chain, start in enumerate(noise):
            own = gather_rows(cond, torch.tensor([chain], device=noise.device))
            sample, waited, computed = self._chain(denoiser, process, start, kicks[:, chain], own)
            samples.append(sample)
            passes.append(waited)
            rows.append(computed)
        return SampleResult(torch.stack(samples), torch.tensor(passes), torch.tensor(rows))

    def _chain(
        self, denoiser: Any, process: ReverseProcess, start: Tensor, kicks: Tensor, cond: Any
    ) -> tuple[Tensor, int, int]:
        steps = process.num_steps
        states = start.expand(steps + 1, *start.shape).clone()
        begin = passes = rows = 0
        while begin < steps:
            end = min(begin + self.window, steps)
            k = torch.arange(begin, end, device=start.device)
            owner = torch.zeros_like(k)
            x = states[begin:end]
            x0 = process.x0(x, denoiser(x, process.timesteps[k], gather_rows(cond, owner)), k)
            moves = process.mean(x, x0, k) + per_row(process.sigma[k], x) * kicks[begin:end] - x
            summed = states[begin] + moves.cumsum(0)
            change = (summed - states[begin + 1 : end + 1]).square().flatten(1).mean(1)
            states[begin + 1 : end + 1] = summed
            states[end + 1 :] = summed[-1]
            passes, rows = passes + 1, rows + len(k)
            settled = change <= self.tolerance * process.sigma[k].square()
            settled[0] = True  # the first drift was computed at a state that will not change any more
            begin += int(settled.cumprod(0).sum())
        return states[-1], passes, rows
