"""A stock diffusers pipeline, sampled in fewer network evaluations: stock, exact speculation, and stock again.

python examples/accelerate_a_pipeline.py [folder of a DDPMPipeline, as save_pretrained writes it]
"""

from __future__ import annotations

import sys
import time

import torch
from diffusers import DDPMPipeline

from specpolicy import accelerate

STEPS = 100


def main() -> None:
    pipeline = DDPMPipeline.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/fashion_mnist")
    pipeline.set_progress_bar_config(disable=True)

    def image() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipeline(generator=generator, num_inference_steps=STEPS, output_type="np").images

    before = image()
    print(f"stock: {STEPS} evaluations")
    with accelerate(pipeline) as fast:
        begin = time.perf_counter()
        image()
    account = fast.account
    print(
        f"accelerated, exact: {account.passes.item()} evaluations, {account.evaluations.item()} rows in "
        f"{time.perf_counter() - begin:.2f} s, {account.acceptance:.0%} of the drafted steps accepted"
    )
    print(f"restored: {STEPS} evaluations, the same image bit for bit: {(image() == before).all()}")


if __name__ == "__main__":
    main()
