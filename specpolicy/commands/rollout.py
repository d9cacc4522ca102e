"""``specpolicy rollout``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from specpolicy.commands.common import comparison_of, composed, finish_recording
from specpolicy.config import parse_seeds, split_list_override, to_container


def rollout(overrides: Sequence[str]) -> None:
    """Run a policy in its environment with one or more samplers and compare them.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    names, others = split_list_override(overrides, "sampler")
    cfg, recipes = composed("rollout", others, names)

    from specpolicy.evaluation.compare import SeedsSeenInTraining, compare, require_unseen

    comparison = comparison_of(cfg, recipes, parse_seeds(to_container(cfg.seeds)))
    try:
        require_unseen(comparison)
    except SeedsSeenInTraining as error:
        warnings.warn(str(error), stacklevel=1)
    compare(comparison, Path(cfg.out))
    finish_recording(comparison.make_views, comparison.episodes())
