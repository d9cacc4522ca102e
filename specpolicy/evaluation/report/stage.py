"""What it takes to play a recorded episode again, rebuilt from what a results folder says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import specpolicy
from specpolicy import recipes

from ..player import MakeEnv
from ..protocols import Policy, Sampler
from ..provenance import checkpoint_digest
from .law import eager
from .results import TaskResults


class StageError(RuntimeError):
    """A recorded episode cannot be played again here; the message says why."""


@dataclass(frozen=True)
class Stage:
    """Whom to ask, and where to play."""

    policy: Policy
    sampler: Sampler
    make_env: MakeEnv


def set_stage(results: TaskResults, sampler: str, checkpoint: str | None = None, device: str = "cpu") -> Stage:
    """The policy, sampler and rendering environment that episodes of these results were played with.

    Args:
        results: whose manifest to follow.
        sampler: which one.
        checkpoint: where the policy is now; by default where it was.
        device: where it is to compute.

    Raises:
        StageError: the checkpoint is missing or another one, or the recipe is none of this library.
        CheckpointError: the checkpoint is damaged.
    """
    from specpolicy.policies.checkpoint import load_policy

    path = Path(checkpoint or _recorded_checkpoint(results))
    try:
        digest = checkpoint_digest(path)
    except FileNotFoundError as error:
        raise StageError(f"{error}; say where it is with checkpoint=") from error
    if digest != results.manifest.configuration.get("checkpoint"):
        raise StageError(f"{path} is not the checkpoint of these results (SHA-256 {digest[:12]}…)")
    environment = dict(results.manifest.configuration["environment"])
    policy = load_policy(path, device)
    recipe = eager(results.manifest.samplers.get(sampler, {}).get("recipe"))  # for a film or two nobody compiles
    return Stage(
        policy,
        _sampler(recipe, sampler, policy),
        MakeEnv(environment.pop("id"), {**environment, "render_mode": "rgb_array"}),
    )


def _recorded_checkpoint(results: TaskResults) -> str:
    for entry in reversed(results.manifest.provenance):
        path = (entry.get("checkpoint") or {}).get("path")
        if path:
            return str(path)
    raise StageError("the manifest does not say where the checkpoint is; say so with checkpoint=")


def _sampler(recipe: Any, name: str, policy: Policy) -> Sampler:
    """Make a sampler from its recipe, which may come from anywhere: it must name nothing but parts of this library."""
    from hydra.utils import instantiate

    if not isinstance(recipe, Mapping):
        raise StageError(f"the recipe of {name} is not kept in a form that it could be made from")
    strange = [target for target in _targets(recipe) if not _is_a_part(target)]
    if strange:
        raise StageError(f"the recipe of {name} names {', '.join(strange)}, which is no part of specpolicy")
    made: Sampler = instantiate(dict(recipe))(policy)
    return made


def _targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield str(tree["_target_"])
        for branch in tree.values():
            yield from _targets(branch)
    elif isinstance(tree, list):
        for branch in tree:
            yield from _targets(branch)


def _is_a_part(target: str) -> bool:
    """A recipe, drafter or verifier of this library by its public name."""
    room, _, name = target.rpartition(".")
    if room == "specpolicy.recipes":
        return getattr(getattr(recipes, name, None), "__module__", None) == "specpolicy.recipes"
    part = getattr(specpolicy, name, None) if room == "specpolicy" else None
    return isinstance(part, type) and issubclass(part, specpolicy.Drafter | specpolicy.Verifier)
