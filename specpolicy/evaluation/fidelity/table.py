"""Fidelity as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from .measure import Fidelity


def fidelity_table(results: Mapping[str, Fidelity], chunks: int, reference: str = "ddpm") -> str:
    """A markdown table, one line a sampler, means over observations with 95 % bootstrap intervals."""
    columns = ["sampler", "law", "energy distance", "p (same law)", "spread", "roughness", "share of the rarer mode"]
    lines = ["| " + " | ".join(columns) + " |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    bimodal = 0
    for name, each in results.items():
        shares = [share for share in each.rarer_mode if share is not None]
        bimodal = len(shares)
        cells = [
            name + (" (drawn again)" if name == reference else ""),
            "exact" if each.exact else "approx.",
            _interval(each.distance, "+.3f"),
            f"{each.p_value:.2g}",
            _interval(each.spread, ".2f"),
            _interval(each.roughness, ".2f"),
            _interval(shares, ".2f") if len(shares) > 1 else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    observations = len(next(iter(results.values())).distance)
    lines += [
        "",
        f"{chunks} chunks of every sampler at each of {observations} observations, executed actions only, against as "
        f"many of {reference} drawn with other noise. Energy distance in units of {reference}'s spread, unbiased: zero "
        f"on average for the same law. Spread and roughness (mean second difference of the actions) are relative to "
        f"{reference}'s. Two modes were found at {bimodal} observations. Means over observations with 95 % bootstrap "
        f"intervals; p from permutations.",
    ]
    return "\n".join(lines) + "\n"


def fidelity_json(results: Mapping[str, Fidelity], chunks: int, provenance: Mapping[str, Any]) -> str:
    """Every number, observation by observation."""
    content = {
        "chunks": chunks,
        "samplers": {name: asdict(each) for name, each in results.items()},
        "provenance": dict(provenance),
    }
    return json.dumps(content, indent=1) + "\n"


def _interval(values: list[float], form: str) -> str:
    array = np.asarray(values)
    drawn = array[np.random.default_rng(0).integers(len(array), size=(2000, len(array)))].mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{array.mean():{form}} [{low:{form}}, {high:{form}}]"
