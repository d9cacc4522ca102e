"""``specpolicy images``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from specpolicy.commands.common import composed
from specpolicy.config import split_list_override, to_container
from specpolicy.utils.extras import require


def images(overrides: Sequence[str]) -> None:
    """sample a diffusers pipeline with one or more samplers: a sheet of images, times, and what was accepted"""
    for module in ("PIL", "matplotlib"):
        require(module, "images")
    from specpolicy.images.measuring import ImageJob, acceptance_figure, image_grid, load_pipeline, sample_images, table
    from specpolicy.utils.files import atomic_path

    names, others = split_list_override(overrides, "sampler")
    cfg, recipes = composed("images", others, names or ["ddpm", "free_adaptive"])
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
    with atomic_path(out / "acceptance.png") as temporary:
        acceptance_figure(results).savefig(temporary, format="png")
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(table(results), encoding="utf-8")
    print(f"{table(results)}in {out}: grid.png, acceptance.png, table.md")
