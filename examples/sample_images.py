"""One image of Fashion-MNIST, three samplers: the policy example with another network and another process."""

from __future__ import annotations

import time

import torch
from diffusers import DDPMPipeline

from specpolicy import AdaptiveWindow, BlockVerifier, FreeDrafter
from specpolicy import samplers as factories


def main() -> None:
    pipeline = DDPMPipeline.from_pretrained("checkpoints/fashion_mnist")
    scheduler, window = pipeline.scheduler, AdaptiveWindow()
    samplers = {
        "DDPM-100 (exact)": factories.sequential(scheduler, 100),
        "DDIM-10 (approximate)": factories.ddim(scheduler, 10),
        "free + block (exact)": factories.speculative(scheduler, 100, FreeDrafter(), BlockVerifier(), window),
    }

    def denoiser(x: torch.Tensor, timestep: torch.Tensor, cond: None) -> torch.Tensor:
        return pipeline.unet(x, timestep).sample

    noise = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for name, sampler in samplers.items():
        start = time.perf_counter()
        result = sampler(denoiser, noise, generator=torch.Generator().manual_seed(0))
        milliseconds = 1e3 * (time.perf_counter() - start)
        print(f"{name:22s} {int(result.passes):4d} evaluations {milliseconds:7.0f} ms")
        for row in result.sample[0, 0, ::2].clamp(-1, 1):  # every other row: letters are tall
            print("    " + "".join(" .:-=+*#%@"[int(4.99 * (value + 1))] for value in row.tolist()))


if __name__ == "__main__":
    main()
