"""Which law an exact sampler samples: two of the same law differ in speed alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Recipes that sample the DDPM chain of the policy's own scheduler, whatever their drafter and window.
_CHAINS = tuple(f"specpolicy.recipes.{name}" for name in ("sequential", "speculative", "linear", "auto"))


@dataclass(frozen=True)
class Law:
    """The DDPM chain of the policy's scheduler with so many steps, with matched noise or with the scheduler's own."""

    steps: int
    matched: bool = False

    def __str__(self) -> str:
        return f"{self.steps} {'matched ' if self.matched else ''}steps"


def law_of(recipe: Any) -> Law | None:
    """The law of an exact sampler's recipe as a manifest keeps it; None if the recipe does not tell."""
    recipe = eager(recipe)
    if not isinstance(recipe, Mapping) or recipe.get("_target_") not in _CHAINS:
        return None
    steps = recipe.get("num_inference_steps")
    return Law(steps, bool(recipe.get("matched", False))) if isinstance(steps, int) else None


def eager(recipe: Any) -> Any:
    """The recipe of what a compiled sampler was compiled from; any other recipe is its own."""
    if isinstance(recipe, Mapping) and recipe.get("_target_") == "specpolicy.recipes.compiled":
        return recipe.get("sampler")
    return recipe
