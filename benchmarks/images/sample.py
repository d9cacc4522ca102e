"""Sample a diffusers pipeline with one or more samplers: a sheet of images, times and acceptance.

python -m benchmarks.images.sample model=checkpoints/fashion_mnist sampler=[ddpm,free_adaptive] out=runs/images
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from benchmarks.images.command_line import compose_script, run_script
from specpolicy.config import split_list_override, to_container
from specpolicy.evaluation.plots import save
from specpolicy.utils.extras import require
from specpolicy.utils.files import atomic_path


def sample(overrides: Sequence[str]) -> None:
    """Sample and write ``grid.png``, ``acceptance.png`` and ``table.md``.

    Args:
        overrides: of ``configs/sample.yaml``; ``sampler=[a,b]`` names several.
    """
    for module in ("PIL", "matplotlib"):
        require(module, "images")
    from benchmarks.images.sampling import (
        ImageJob,
        acceptance_figure,
        image_grid,
        load_pipeline,
        sample_images,
        table,
    )

    names, others = split_list_override(overrides, "sampler")
    configs = {
        name: compose_script("sample", [*others, f"sampler={name}"]) for name in names or ["ddpm", "free_adaptive"]
    }
    cfg, recipes = next(iter(configs.values())), {name: each.sampler for name, each in configs.items()}
    fixed = {name: to_container(cfg[name]) for name in ("images", "batch", "seed", "labels", "prompts", "call")}
    if cfg.guidance_scale is not None:
        fixed["call"]["guidance_scale"] = cfg.guidance_scale
    job = ImageJob(
        {name: instantiate(recipe) for name, recipe in recipes.items()},
        {
            "model": str(cfg.model),
            "dtype": cfg.dtype,
            "samplers": {name: to_container(recipe) for name, recipe in recipes.items()},
            **fixed,
        },
        **fixed,
    )
    out = Path(cfg.out)
    results = sample_images(load_pipeline(cfg.model, cfg.device, cfg.dtype), job, out)
    sheet = image_grid({name: [out / name / f"{each:05d}.png" for each in range(job.images)] for name in results})
    with atomic_path(out / "grid.png") as temporary:
        sheet.save(temporary, format="png")
    save(acceptance_figure(results), out / "acceptance.png")
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(table(results), encoding="utf-8")
    print(f"{table(results)}in {out}: grid.png, acceptance.png, table.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as from the command line; returns the exit status."""
    return run_script(sample, arguments)


if __name__ == "__main__":
    sys.exit(main())
