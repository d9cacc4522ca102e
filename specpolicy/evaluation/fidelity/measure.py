"""What a sampler keeps of the policy's law: many chunks at the same observations, held against sequential sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.progress import progress_bar

from ..protocols import Observation, Policy, Sampler
from ..seeding import episode_generator
from .energy import energy_distance, permutation_test
from .shape import find_modes, roughness, spread

Drawn = NDArray[np.float64]
"""Chunks of one sampler ``(observations, chunks, time, action)``, each action coordinate in units of its own scale."""


@dataclass(frozen=True)
class Fidelity:
    """One sampler against independent draws of the reference; lists have an entry for each observation.

    Attributes:
        exact: whether the sampler says that it follows the policy's law.
        distance: energy distance, in units of the reference's own spread there. Unbiased: about zero for the same law.
        coefficient: the same as a share of 2 E‖X − Y‖, from 0 to 1.
        spread: the sampler's over the reference's.
        roughness: the sampler's over the reference's.
        rarer_mode: share of chunks in the reference's rarer mode, where it has two modes; None elsewhere.
        p_value: of the hypothesis that the laws are equal at all observations (permutation test).
    """

    exact: bool
    distance: list[float] = field(default_factory=list)
    coefficient: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    roughness: list[float] = field(default_factory=list)
    rarer_mode: list[float | None] = field(default_factory=list)
    p_value: float = 1.0


def measure_fidelity(
    policy: Policy,
    samplers: Mapping[str, Sampler],
    observations: Sequence[Observation],
    *,
    chunks: int = 200,
    reference: str = "ddpm",
    seed: int = 0,
    permutations: int = 300,
) -> dict[str, Fidelity]:
    """Draw ``chunks`` action chunks of every sampler at every observation and compare them with the reference's.

    The reference is drawn twice with independent noise, so that its own row shows what chance alone does.

    Args:
        policy: whom to ask.
        samplers: by name; the reference among them.
        observations: recorded ones, arrays of shape ``(1, observation_horizon, dim)``.
        chunks: drawn at each observation, at least eight.
        reference: name of the sampler whose law is the measure.
        seed: of all draws.
        permutations: of the test; the p-value is at least ``1 / (permutations + 1)``.

    Raises:
        ValueError: the reference is not among the samplers, or there is nothing to draw at.
    """
    if reference not in samplers or not observations or chunks < 8:
        raise ValueError(
            f"fidelity needs the reference {reference!r} among the samplers (there are {', '.join(samplers)}), "
            f"at least one observation ({len(observations)} given) and at least 8 chunks ({chunks} asked for)"
        )
    results: dict[str, Fidelity] = {}
    with progress_bar("drawing chunks", total=(len(samplers) + 1) * len(observations)) as bar:

        def draw(name: str, stream: int) -> Drawn:
            bar.describe(f"drawing chunks, {name}")
            rows = []
            for index, observation in enumerate(observations):
                rows.append(_draw(policy, samplers[name], observation, chunks, episode_generator(seed + index, stream)))
                bar.advance()
            return np.stack(rows)

        measure = draw(reference, 0)
        # Coordinates differ in unit (metres, radians, a gripper): each is scaled by its deviation over all draws.
        scale = np.maximum(measure.std(axis=(0, 1, 2)), 1e-6)
        measure = measure / scale
        modes = [find_modes(each, seed) for each in measure]
        for number, (name, sampler) in enumerate(samplers.items(), start=1):
            mine = draw(name, number) / scale
            flat = [(a.reshape(chunks, -1), b.reshape(chunks, -1)) for a, b in zip(mine, measure, strict=True)]
            distances = [energy_distance(*pair) for pair in flat]
            widths = [spread(each) for each in measure]
            results[name] = Fidelity(
                exact=bool(sampler.exact),
                distance=[each.distance / width for each, width in zip(distances, widths, strict=True)],
                coefficient=[each.coefficient for each in distances],
                spread=[spread(each) / width for each, width in zip(mine, widths, strict=True)],
                roughness=[roughness(a) / roughness(b) for a, b in zip(mine, measure, strict=True)],
                rarer_mode=[found.share(each) if found.two else None for found, each in zip(modes, mine, strict=True)],
                p_value=permutation_test(flat, permutations, seed),
            )
    return results


def _draw(
    policy: Policy, sampler: Sampler, observation: Observation, chunks: int, generator: torch.Generator
) -> NDArray[np.float64]:
    repeated = {name: np.repeat(part, chunks, axis=0) for name, part in observation.items()}
    return np.asarray(policy.act(repeated, sampler, generator).actions, dtype=np.float64)
