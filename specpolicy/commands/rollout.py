"""``specpolicy rollout``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from specpolicy.composition import parse_seeds, plain, split_list_override

from .comparisons import comparison_of, composed


def rollout(overrides: Sequence[str]) -> None:
    """run a policy in its environment with one or more samplers and compare them"""
    from specpolicy.evaluation.compare import SeedsSeenInTraining, compare, require_unseen

    names, others = split_list_override(overrides, "sampler")
    cfg, recipes = composed("rollout", others, names)
    comparison = comparison_of(cfg, recipes, parse_seeds(plain(cfg.seeds)))
    try:
        require_unseen(comparison)
    except SeedsSeenInTraining as error:
        warnings.warn(str(error), stacklevel=1)
    compare(comparison, Path(cfg.out))
