"""Sample a Gaussian mixture over 100 steps in under ten evaluations, and check the distribution."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler

import specpolicy
from specpolicy.speculative.exactness import check_exactness

MEANS, SCALE = torch.tensor([[-0.6, 0.3], [0.5, 0.5], [0.1, -0.7]]), 0.05


def main() -> None:
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=False)

    def denoiser(x: torch.Tensor, timestep: torch.Tensor, cond: None) -> torch.Tensor:
        alpha = scheduler.alphas_cumprod[timestep][:, None]
        variance = alpha * SCALE**2 + 1 - alpha
        away = x[:, None] - alpha.sqrt()[..., None] * MEANS
        weight = (-away.square().sum(-1) / 2 / variance).softmax(1)
        x0 = (weight[..., None] * (MEANS + (alpha.sqrt() * SCALE**2 / variance)[..., None] * away)).sum(1)
        return (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()

    process = specpolicy.ReverseProcess.from_scheduler(scheduler, 100)
    for sampler in (
        specpolicy.SequentialSampler(process),
        specpolicy.asd(process),
        specpolicy.SpeculativeSampler(process),
    ):
        result = sampler(denoiser, torch.randn(1000, 2), generator=torch.Generator().manual_seed(0), record=True)
        p = check_exactness(process, result).smallest
        print(f"{sampler}: {result.passes.double().mean():.1f} evaluations, exactness p = {p:.2f}")


if __name__ == "__main__":
    main()
