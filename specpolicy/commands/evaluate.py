"""``specpolicy evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from specpolicy.commands.common import comparison_of, composed, tasks_with_checkpoint
from specpolicy.config import compose, parse_seeds, split_list_override, to_container


def evaluate(overrides: Sequence[str]) -> None:
    """Compare samplers over many seeds of one, several or all tasks, on this machine or a Ray cluster.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    names, others = split_list_override(overrides, "sampler")
    tasks, others = split_list_override(others, "task")
    common, recipes = composed("evaluate", others, names)
    others = [*others, f"sampler={next(iter(recipes))}"]  # whose entries the overrides are known to fit
    chosen = tasks_with_checkpoint("evaluate", others) if tasks == ["all"] else tasks or [common.task.name]
    configs = {task: compose("evaluate", [*others, f"task={task}"]) for task in chosen}

    from specpolicy.evaluation.compare import compare_tasks, require_unseen
    from specpolicy.policies.checkpoint import CheckpointError
    from specpolicy.rollout.episodes import EVALUATION_SEEDS

    comparisons = {}
    for task, cfg in configs.items():
        try:
            comparison = comparison_of(
                cfg, recipes, parse_seeds(to_container(cfg.seeds), EVALUATION_SEEDS, may_open=True)
            )
        except CheckpointError as error:
            raise CheckpointError(f"task {task}: {error}. Nothing was run; task=all leaves such tasks out") from error
        require_unseen(comparison)
        comparisons[task] = comparison
    compare_tasks(comparisons, Path(common.out), instantiate(common.launcher))
