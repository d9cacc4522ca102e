"""One verification batch, computed by several processes: torchrun --nproc-per-node=2 examples/sample_over_ranks.py"""

from __future__ import annotations

import torch
import torch.distributed as dist
from diffusers import DDPMScheduler

import specpolicy
from specpolicy.speculative.distributed import SplitSampler


def main() -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)  # the same weights on every rank
    network = torch.nn.Sequential(torch.nn.Linear(9, 256), torch.nn.SiLU(), torch.nn.Linear(256, 8)).requires_grad_(
        False
    )
    rows = 0

    def denoiser(x: torch.Tensor, timestep: torch.Tensor, cond: None) -> torch.Tensor:
        nonlocal rows
        rows += len(x)
        return network(torch.cat([x, timestep[:, None] / 100], dim=1))

    process = specpolicy.ReverseProcess.from_scheduler(DDPMScheduler(100, beta_schedule="squaredcos_cap_v2"), 100)
    sampler = SplitSampler(specpolicy.SpeculativeSampler(process, window=24))
    result = sampler(denoiser, torch.randn(2, 8), generator=torch.Generator().manual_seed(0))
    print(
        f"rank {dist.get_rank()}: {result.passes.tolist()} passes, {rows} of {int(result.passes.sum())} rows "
        f"computed here, sample begins with {result.sample[0, 0]:.5f}",
        flush=True,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
