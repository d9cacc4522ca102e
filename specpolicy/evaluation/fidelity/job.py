"""Fidelity of the samplers of a results folder, measured on the observations that its episodes left there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from specpolicy.atomic import atomic_path

from ..comparison import Contestants
from ..observations import OBSERVATIONS, read_observations
from .measure import Fidelity, measure_fidelity
from .table import fidelity_json, fidelity_table

FIDELITY = "fidelity.json"


class NoObservations(ValueError):
    """A folder has no recorded observations to draw chunks at."""


def judge_fidelity(
    contestants: Contestants,
    folder: Path,
    *,
    observations: int = 24,
    chunks: int = 200,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Fidelity]:
    """Measure, and write ``fidelity.json`` and ``fidelity.md`` into ``folder``.

    Args:
        contestants: a policy and samplers, ``ddpm`` among them.
        folder: a results folder of the same policy; its recorded observations are taken at even distances.
        observations: how many of them, at most.
        chunks: drawn of each sampler at each observation.
        seed: of all draws.
        provenance: kept with the result.

    Raises:
        NoObservations: the folder has none.
    """
    recorded = read_observations(folder)
    if not recorded:
        raise NoObservations(f"no {OBSERVATIONS} in {folder}; run `specpolicy evaluate` or `rollout` into it first")
    picks = np.unique(np.linspace(0, len(recorded) - 1, min(observations, len(recorded))).round().astype(int))
    results = measure_fidelity(
        contestants.policy, contestants.samplers, [recorded[pick] for pick in picks], chunks=chunks, seed=seed
    )
    for name, text in (
        (FIDELITY, fidelity_json(results, chunks, provenance or {})),
        ("fidelity.md", fidelity_table(results, chunks)),
    ):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return results
