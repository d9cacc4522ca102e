"""Fidelity of the samplers of a results folder, measured on the observations that its episodes left there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.control.inference import episode_generator
from specpolicy.evaluation.comparison import PolicyAndSamplers
from specpolicy.evaluation.results import OBSERVATIONS, read_observations
from specpolicy.evaluation.statistics import StatisticsError
from specpolicy.policies.protocols import ChunkPolicy, ChunkSampler, Observation
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

Samples = NDArray[np.floating]


class EnergyDistance(NamedTuple):
    """Two samples compared.

    Attributes:
        distance: unbiased estimate of 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖, in the samples' unit; chance may bring
            it below zero.
        coefficient: the distance over 2 E‖X − Y‖, from 0 (equal laws) to 1 (two different constants).
    """

    distance: float
    coefficient: float


def energy_distance(first: Samples, second: Samples) -> EnergyDistance:
    """Compare samples of shapes ``(n, d)`` and ``(m, d)``, at least two rows each.

    Raises:
        StatisticsError: other shapes, or values that are not finite.
    """
    pooled = _pooled(first, second)
    return _from_distances(_distances(pooled), np.arange(len(pooled)) < len(first))


def permutation_test(pairs: list[tuple[Samples, Samples]], permutations: int = 500, seed: int = 0) -> float:
    """Do all these pairs come from equal laws? Rows are exchanged within each pair and never between pairs.

    Each pair's distance is put in units of its own scatter under relabelling, so that a pair of widely spread samples
    does not drown the others; then they are added.

    Args:
        pairs: samples ``(n, d)`` and ``(m, d)``, one pair an observation, say.
        permutations: random relabellings, at least two; the p-value is at least ``1 / (permutations + 1)``.
        seed: of the relabellings.

    Returns:
        The p-value of the hypothesis that the two laws of every pair are equal.
    """
    if not pairs or permutations < 2:
        raise StatisticsError(
            f"no pairs, or too few permutations ({permutations}); a test takes a pair and two of them"
        )
    rng = np.random.default_rng(seed)
    observed, relabelled = 0.0, np.zeros(permutations)
    for first, second in pairs:
        distances = _distances(_pooled(first, second))
        label = np.arange(len(distances)) < len(first)
        chance = np.array([_from_distances(distances, rng.permutation(label)).distance for _ in range(permutations)])
        scatter = max(float(chance.std()), np.finfo(float).tiny)
        observed += _from_distances(distances, label).distance / scatter
        relabelled += chance / scatter
    return (1 + int(np.sum(relabelled >= observed))) / (1 + permutations)


def _pooled(first: Samples, second: Samples) -> NDArray[np.float64]:
    shapes = first.shape, second.shape
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise StatisticsError(f"samples of shapes (n, d) and (m, d) with n, m >= 2 are compared, not {shapes}")
    pooled = np.concatenate([first, second]).astype(np.float64)
    if not np.isfinite(pooled).all():
        raise StatisticsError("the samples hold NaN or infinite values")
    return pooled


def _distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.distance import pdist, squareform

    return squareform(pdist(points))


def _from_distances(distances: NDArray[np.float64], label: NDArray[np.bool_]) -> EnergyDistance:
    """From all distances and who belongs to the first sample; two products with the matrix give all three sums."""
    one, other = label.astype(np.float64), (~label).astype(np.float64)
    n, m = one.sum(), other.sum()
    to_one, to_other = distances @ one, distances @ other
    between = 2 * (other @ to_one) / (n * m)
    within = (one @ to_one) / (n * (n - 1)) + (other @ to_other) / (m * (m - 1))
    distance = float(between - within)
    return EnergyDistance(distance, distance / float(between) if between > 0 else 0.0)


Chunks = NDArray[np.floating]
"""Action chunks ``(n, time, action)`` drawn at one observation."""

_SURROGATES = 19
"""Gaussian samples that the two groups of a sample are held against: a chance of 1/20 to be taken for two modes."""


def spread(chunks: Chunks) -> float:
    """Root of the mean squared distance from the mean chunk, in the actions' unit."""
    flat = chunks.reshape(len(chunks), -1).astype(np.float64)
    return float(np.sqrt(np.mean(np.sum((flat - flat.mean(0)) ** 2, axis=1))))


def roughness(chunks: Chunks) -> float:
    """Mean norm of the second difference of successive actions: 0 for constant velocity. Needs three actions."""
    second = np.diff(chunks.astype(np.float64), n=2, axis=1)
    return float(np.mean(np.linalg.norm(second, axis=-1)))


class Modes(NamedTuple):
    """Two groups found in a reference sample by 2-means.

    Attributes:
        centres: shape ``(2, d)``, the rarer group first.
        separation: Ashman's D = √2 |μ₁ − μ₂| / √(s₁² + s₂²) along the line through the centres.
        gaussian: the largest separation among Gaussian samples of the same size, mean and covariance. 2-means cuts
            those in two as well, and the more cleanly the more dimensions there are.
    """

    centres: NDArray[np.float64]
    separation: float
    gaussian: float

    @property
    def two(self) -> bool:
        """Whether the groups lie further apart than any Gaussian's."""
        return self.separation > self.gaussian

    def share(self, chunks: Chunks) -> float:
        """Share of ``chunks`` that lie nearer to the rarer group's centre."""
        flat = chunks.reshape(len(chunks), -1)
        nearer = np.linalg.norm(flat[:, None] - self.centres, axis=-1).argmin(axis=1)
        return float(np.mean(nearer == 0))


def find_modes(chunks: Chunks, seed: int = 0) -> Modes:
    """Split a reference sample into two groups and hold them against Gaussian samples drawn with ``seed``."""
    flat = chunks.reshape(len(chunks), -1).astype(np.float64)
    if len(flat) < 8:
        raise StatisticsError(f"{len(flat)} chunks do not show modes; draw at least eight, better a hundred")
    centres, separation = _two_groups(flat)
    rng = np.random.default_rng(seed)
    centred = (flat - flat.mean(0)) / np.sqrt(len(flat) - 1)
    # Rows of weights times the centred data have its covariance, whatever the number of dimensions.
    draws = (rng.normal(size=(len(flat), len(flat))) @ centred for _ in range(_SURROGATES))
    return Modes(centres, separation, max(_two_groups(draw)[1] for draw in draws))


def _two_groups(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Centres of 2-means, the rarer first, and their separation; begun at both ends of the widest direction."""
    from scipy.cluster.vq import kmeans2

    centred = flat - flat.mean(0)
    if not centred.any():
        return flat[:2], 0.0
    _, weights = np.linalg.eigh(centred @ centred.T)  # the small side: chunks are fewer than their coordinates
    reach = weights[:, -1] @ centred / np.sqrt(len(flat))
    centres, label = kmeans2(flat, flat.mean(0) + np.stack([-reach, reach]), minit="matrix", missing="warn")
    sizes = np.bincount(label, minlength=2)
    if sizes.min() == 0:
        return centres, 0.0
    axis = (centres[1] - centres[0]) / np.linalg.norm(centres[1] - centres[0])
    first, second = (flat[label == group] @ axis for group in (0, 1))
    scatter = np.sqrt(first.var() + second.var())
    separation = np.sqrt(2) * abs(first.mean() - second.mean()) / max(scatter, 1e-12)
    return centres[np.argsort(sizes, kind="stable")], float(separation)


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
    policy: ChunkPolicy,
    samplers: Mapping[str, ChunkSampler],
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
        observations: recorded ones, arrays of shape ``(1, n_obs_steps, dim)``.
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
    policy: ChunkPolicy, sampler: ChunkSampler, observation: Observation, chunks: int, generator: torch.Generator
) -> NDArray[np.float64]:
    repeated = {name: np.repeat(part, chunks, axis=0) for name, part in observation.items()}
    return np.asarray(policy.predict_action(repeated, sampler, generator).actions, dtype=np.float64)


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


FIDELITY = "fidelity.json"


class NoObservations(ValueError):
    """A folder has no recorded observations to draw chunks at."""


def judge_fidelity(
    contestants: PolicyAndSamplers,
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
