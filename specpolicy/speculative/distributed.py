"""Network evaluations shared by the ranks of ``torch.distributed``, for networks that are too slow on one device.

Every rank runs the whole program with the same seeds, as in other distributed inference; only the rows of the network's
batch are divided. Verification gives batches to divide, where a sequential sampler has one row.

    torchrun --nproc-per-node=2 examples/sample_over_ranks.py

Rows over devices is how ASD was measured (Hu et al. 2025, eight GPUs).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, gather_rows
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler_call import Noise


class RanksDisagreeError(RuntimeError):
    """The ranks of a group were asked for different things; their samples would be meaningless."""


class SplitDenoiser:
    """A denoiser that computes its share of the rows and gathers those of the other ranks.

    All ranks must call it in the same order with the same arguments. Outputs are the same on all of them, so that
    samplers with equal seeds stay in step; up to rounding they are those of a single process.

    Args:
        denoiser: computes rows on this rank, with the same weights everywhere.
        group: of the ranks; None for all.
        least: batches of fewer rows are computed by every rank for itself, where talking would take longer. With any
            ``least`` a batch of one row is.

    Raises:
        RuntimeError: ``torch.distributed`` has not been initialized.
    """

    def __init__(self, denoiser: Denoiser, group: dist.ProcessGroup | None = None, least: int = 2) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "no process group: start with torchrun and call torch.distributed.init_process_group() first"
            )
        self.denoiser, self.group, self.least = denoiser, group, max(least, 2)

    def __call__(self, x: Float[Tensor, "n ..."], timestep: Int[Tensor, " n"], cond: Cond) -> Float[Tensor, "n ..."]:
        """Evaluate the network on ``n`` rows, of which this rank computes ⌈n / ranks⌉.

        Args:
            x: noisy points, shape ``(n, *event)``.
            timestep: of each, shape ``(n,)``.
            cond: conditions with leading dimension n.

        Returns:
            The output of all rows.

        Raises:
            RanksDisagreeError: another rank came with other rows.
        """
        ranks = dist.get_world_size(self.group)
        if len(x) < self.least or ranks == 1:
            return self.denoiser(x, timestep, cond)
        self._check_in_step(x, timestep, ranks)
        share = -(-len(x) // ranks)
        first = dist.get_rank(self.group) * share
        # Shares must be equal to be gathered; where rows run out the last one is computed again.
        rows = torch.arange(first, first + share, device=x.device).clamp(max=len(x) - 1)
        mine = self.denoiser(x[rows], timestep[rows], gather_rows(cond, rows)).contiguous()
        parts = [torch.empty_like(mine) for _ in range(ranks)]
        dist.all_gather(parts, mine, group=self.group)
        return torch.cat(parts)[: len(x)]

    def _check_in_step(self, x: Tensor, timestep: Tensor, ranks: int) -> None:
        """Compare what the ranks were asked for: otherwise a stray seed gives samples of no distribution at all."""
        asked = torch.stack([x.new_tensor(len(x), dtype=torch.float64), x.double().sum(), timestep.double().sum()])
        seen = [torch.empty_like(asked) for _ in range(ranks)]
        dist.all_gather(seen, asked, group=self.group)
        if not all(torch.allclose(each, asked, rtol=1e-6, atol=1e-6, equal_nan=True) for each in seen):
            told = [f"{int(each[0])} rows with sum {float(each[1]):.6g}" for each in seen]
            raise RanksDisagreeError(
                f"the ranks ask for different rows ({'; '.join(told)}): give all of them the same noise, conditions "
                "and equally seeded generators"
            )


class SplitSampler:
    """A sampler whose network evaluations are shared by all ranks, for every place that takes a sampler.

    Args:
        sampler: any; sequential ones gain only where many chains are sampled at once.
        group: as for :class:`SplitDenoiser`.
        least: as for :class:`SplitDenoiser`.
    """

    def __init__(self, sampler: Any, group: dist.ProcessGroup | None = None, least: int = 2) -> None:
        self.sampler, self.group, self.least = sampler, group, least
        self.exact: bool = sampler.exact

    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """As the sampler's own call. Raises what that does, and as :class:`SplitDenoiser`."""
        shared = SplitDenoiser(denoiser, self.group, self.least)
        result: SampleResult = self.sampler(shared, noise, cond=cond, generator=generator, record=record)
        return result
