"""``specpolicy plan``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specpolicy.config import compose, to_container


def plan(overrides: Sequence[str]) -> None:
    """Say which difference of success paired seeds can detect, before they are spent.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    settings: dict[str, Any] = to_container(compose("plan", overrides))

    from specpolicy.evaluation.planning import plan_comparison

    seeds = settings.pop("seeds")
    plans = [plan_comparison(each, **settings) for each in (seeds if isinstance(seeds, list) else [seeds])]
    first = plans[0]
    print(
        f"reference success {100 * first.success:g} %; "
        f"equally good samplers differ on {100 * first.discordance:.1f} % of seeds"
    )
    for each in plans:
        found = "no loss" if each.detectable is None else f"a loss of {100 * each.detectable:.1f} points"
        print(
            f"{each.seeds} seeds: {found} is detected with power {settings['power']:g}; an equal sampler is shown "
            f"non-inferior at {100 * each.margin:g} points with probability {100 * each.non_inferior:.0f} %, one "
            f"that is worse by the margin with {100 * each.error:.1f} %"
        )
