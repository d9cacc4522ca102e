"""``specpolicy fidelity``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from specpolicy.commands.common import composed, tasks_with_checkpoint
from specpolicy.config import compose, split_list_override


def fidelity(overrides: Sequence[str]) -> None:
    """Compare the distributions of samplers at recorded observations: distance, spread, modes, smoothness.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    names, others = split_list_override(overrides, "sampler")
    tasks, others = split_list_override(others, "task")
    common, recipes = composed("fidelity", others, names or ["ddpm", "free_block", "ddim10", "ddim5"])

    from specpolicy.evaluation.comparison import CheckpointLoader
    from specpolicy.evaluation.fidelity import fidelity_table, judge_fidelity
    from specpolicy.evaluation.latency import device_of
    from specpolicy.utils.provenance import collect_provenance

    makers = {name: instantiate(recipe) for name, recipe in recipes.items()}
    several = tasks is not None and (tasks == ["all"] or len(tasks) > 1)
    for task in tasks_with_checkpoint("fidelity", others) if tasks == ["all"] else tasks or [common.task.name]:
        cfg = compose("fidelity", [*others, f"task={task}"])
        folder = Path(cfg.results) / task if several else Path(cfg.results)
        contestants = CheckpointLoader(str(cfg.checkpoint), task, makers, cfg.device)()
        results = judge_fidelity(
            contestants,
            folder,
            observations=cfg.observations,
            chunks=cfg.chunks,
            seed=cfg.seed,
            provenance=collect_provenance(cfg.checkpoint, [cfg.seed], device_of(contestants.policy)),
        )
        print(f"{task}\n{fidelity_table(results, cfg.chunks)}in {folder}")
