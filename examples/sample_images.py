"""A stock diffusers pipeline, sampled in fewer passes: stock, exact speculation, and stock again.

    python examples/sample_images.py [folder of a DDPMPipeline, as save_pretrained writes it]

Without a folder a small untrained network is sampled, which draws nothing but shows the counts.
"""

from __future__ import annotations

import sys
import tempfile
import time

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from specpolicy.interop.diffusers import accelerate

STEPS = 100


def untrained(folder: str) -> str:
    torch.manual_seed(0)
    network = UNet2DModel(
        8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    DDPMPipeline(network, scheduler).save_pretrained(folder)
    return folder


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        pipeline = DDPMPipeline.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else untrained(temporary))
    pipeline.set_progress_bar_config(disable=True)

    def image() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipeline(generator=generator, num_inference_steps=STEPS, output_type="pt").images

    before = image()
    print(f"stock: {STEPS} passes")
    with accelerate(pipeline) as fast:
        begin = time.perf_counter()
        image()
    account = fast.account
    print(
        f"accelerated, exact: {account.passes.item()} passes, {account.evaluations.item()} states in "
        f"{time.perf_counter() - begin:.2f} s, {account.acceptance:.0%} of the drafted steps accepted"
    )
    print(f"restored: {STEPS} passes, the same image bit for bit: {torch.equal(image(), before)}")


if __name__ == "__main__":
    main()
