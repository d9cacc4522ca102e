"""How close the distribution of a sampler's action chunks is to that of the full DDPM chain.

Chunks are drawn at the observations that a results folder has recorded and compared by energy distance (Székely and
Rizzo 2013) with a permutation test, by spread, smoothness, and the share of the rarer of two modes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.control.inference import episode_generator
from specpolicy.evaluation.comparison import PolicyAndSamplers
from specpolicy.evaluation.results import OBSERVATIONS, read_observations
from specpolicy.evaluation.statistics import Estimate, StatisticsError, bootstrap_interval
from specpolicy.evaluation.tables import EXACT, MISSING, Column, interval_text, markdown
from specpolicy.policies.protocols import ChunkPolicy, ChunkSampler, Observation
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

Samples = NDArray[np.floating]


class EnergyDistance(NamedTuple):
    """Energy distance of two samples.

    Attributes:
        distance: unbiased estimate of 2 E‖X - Y‖ - E‖X - X′‖ - E‖Y - Y′‖, in the samples' unit; chance may bring
            it below zero.
        coefficient: the distance over 2 E‖X - Y‖, from 0 (equal distributions) to 1 (two different constants).
    """

    distance: float
    coefficient: float


def energy_distance(first: Samples, second: Samples) -> EnergyDistance:
    """Estimate the energy distance of two samples without bias.

    Args:
        first: shape ``(n, d)``, at least two rows.
        second: shape ``(m, d)``, at least two rows.

    Returns:
        The distance, and its share of the mean distance between the samples.

    Raises:
        StatisticsError: other shapes, or values that are not finite.
    """
    between, within = _mean_distances(_distances(_pooled(first, second)), np.arange(len(first)))
    distance = float(between - within)
    return EnergyDistance(distance, distance / float(between) if between > 0 else 0.0)


def equality_p_value(pairs: Sequence[tuple[Samples, Samples]], permutations: int = 500, seed: int = 0) -> float:
    """Test whether the two samples of every pair come from one distribution.

    Rows are exchanged within each pair and never between pairs (``scipy.stats.permutation_test``). Each pair's energy
    distance is divided by its own standard deviation under relabelling, so that a pair of widely spread samples does
    not outweigh the others; then they are added.

    Args:
        pairs: samples ``(n, d)`` and ``(m, d)``, e.g. one pair for each observation.
        permutations: random relabellings, at least two; the p value is at least ``1 / (permutations + 1)``.
        seed: of the relabellings.

    Returns:
        The p value of the hypothesis that the two distributions of every pair are equal.

    Raises:
        StatisticsError: no pairs, too few permutations, or samples that cannot be compared.
    """
    from scipy.stats import permutation_test

    if not pairs or permutations < 2:
        raise StatisticsError(
            f"no pairs, or too few permutations ({permutations}); a test takes a pair and two of them"
        )
    rng = np.random.default_rng(seed)
    observed, relabelled = 0.0, np.zeros(permutations)
    for first, second in pairs:
        distances = _distances(_pooled(first, second))
        if math.comb(len(distances), len(first)) <= permutations:
            raise StatisticsError(f"{len(first)} and {len(second)} rows have fewer than {permutations} relabellings")

        def statistic(
            rows: NDArray[np.float64], others: NDArray[np.float64], axis: int, matrix: Any = distances
        ) -> Any:
            between, within = _mean_distances(matrix, rows.astype(int))
            return between - within

        found = permutation_test(
            (np.arange(len(first)), np.arange(len(first), len(distances))),
            statistic,
            permutation_type="independent",
            vectorized=True,
            n_resamples=permutations,
            batch=max(1, 4_000_000 // len(distances)),
            alternative="greater",
            rng=rng,
        )
        scatter = max(float(found.null_distribution.std()), np.finfo(float).tiny)
        observed += float(found.statistic) / scatter
        relabelled += found.null_distribution / scatter
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


def _mean_distances(
    distances: NDArray[np.float64], rows: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Twice the mean distance between the samples, and the sum of their mean distances within.

    Args:
        distances: between all points, shape ``(n + m, n + m)``.
        rows: which points form the first sample, shape ``(..., n)``.
    """
    one = np.zeros((*rows.shape[:-1], len(distances)))
    np.put_along_axis(one, rows, 1.0, axis=-1)
    other = 1.0 - one
    n, m = rows.shape[-1], len(distances) - rows.shape[-1]
    to_one, to_other = one @ distances, other @ distances
    between = 2 * np.sum(other * to_one, axis=-1) / (n * m)
    within = np.sum(one * to_one, axis=-1) / (n * (n - 1)) + np.sum(other * to_other, axis=-1) / (m * (m - 1))
    return between, within


Chunks = NDArray[np.floating]
"""Action chunks ``(n, time, action)`` drawn at one observation."""

_SURROGATES = 19
"""Gaussian samples that the two groups of a sample are compared with: a chance of 1/20 to be taken for two modes."""


def spread(chunks: Chunks) -> float:
    """Compute the root mean squared distance from the mean chunk, in the actions' unit.

    Args:
        chunks: shape ``(n, time, action)``.
    """
    flat = chunks.reshape(len(chunks), -1).astype(np.float64)
    return float(np.sqrt(np.mean(np.sum((flat - flat.mean(0)) ** 2, axis=1))))


def roughness(chunks: Chunks) -> float:
    """Compute the mean norm of the second difference of successive actions, which is 0 at constant velocity.

    Args:
        chunks: shape ``(n, time, action)``, at least three actions each.
    """
    second = np.diff(chunks.astype(np.float64), n=2, axis=1)
    return float(np.mean(np.linalg.norm(second, axis=-1)))


class Modes(NamedTuple):
    """Two groups that 2-means finds in a reference sample.

    Attributes:
        centres: shape ``(2, d)``, the rarer group first.
        separation: Ashman's D = √2 |μ₁ - μ₂| / √(s₁² + s₂²) along the line through the centres.
        gaussian: the largest separation among Gaussian samples of the same size, mean and covariance. 2-means cuts
            those in two as well, and the more cleanly the more dimensions there are.
    """

    centres: NDArray[np.float64]
    separation: float
    gaussian: float

    @property
    def two(self) -> bool:
        """Tell whether the groups lie further apart than those of any Gaussian sample."""
        return self.separation > self.gaussian

    def share(self, chunks: Chunks) -> float:
        """Compute the share of chunks, ``(n, time, action)``, that lie nearer to the rarer group's centre."""
        flat = chunks.reshape(len(chunks), -1)
        nearer = np.linalg.norm(flat[:, None] - self.centres, axis=-1).argmin(axis=1)
        return float(np.mean(nearer == 0))


def find_modes(chunks: Chunks, seed: int = 0) -> Modes:
    """Split a reference sample into two groups and compare their separation with that of Gaussian samples.

    Args:
        chunks: shape ``(n, time, action)``, at least eight.
        seed: of the Gaussian samples.

    Raises:
        StatisticsError: fewer than eight chunks.
    """
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
        exact: whether the sampler claims to sample the policy's own distribution.
        distance: energy distance, in units of the reference's spread. Unbiased: about zero for the same distribution.
        coefficient: the same as a share of 2 E‖X - Y‖, from 0 to 1.
        spread: the sampler's over the reference's.
        roughness: the sampler's over the reference's.
        rarer_mode: share of chunks in the reference's rarer mode, where it has two modes; None elsewhere.
        p_value: of the hypothesis that the distributions are equal at all observations (permutation test).
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
        reference: name of the sampler whose distribution is the measure.
        seed: of all draws.
        permutations: of the test; the p value is at least ``1 / (permutations + 1)``.

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
                p_value=equality_p_value(flat, permutations, seed),
            )
    return results


def _draw(
    policy: ChunkPolicy, sampler: ChunkSampler, observation: Observation, chunks: int, generator: torch.Generator
) -> NDArray[np.float64]:
    repeated = {name: np.repeat(part, chunks, axis=0) for name, part in observation.items()}
    return np.asarray(policy.predict_action(repeated, sampler, generator).actions, dtype=np.float64)


def fidelity_table(results: Mapping[str, Fidelity], chunks: int, reference: str = "ddpm") -> str:
    """Render a markdown table, one line a sampler, means over observations with 95 % bootstrap intervals.

    Args:
        results: of :func:`measure_fidelity`.
        chunks: drawn of each sampler at each observation.
        reference: name of the sampler that the others are compared with.

    Returns:
        The table and its caption.
    """
    measured = {name: _Measured(name, each) for name, each in results.items()}

    def mean(of: Callable[[Fidelity], Sequence[float | None]], form: str, least: int = 1) -> Callable[..., str]:
        def render(row: _Measured) -> str:
            known = [value for value in of(row.fidelity) if value is not None]
            return interval_text(_mean_over_observations(known), form) if len(known) >= least else MISSING

        return render

    columns = [
        Column("sampler", lambda row: row.name + (" (drawn again)" if row.name == reference else ""), left=True),
        Column("distribution", lambda row: EXACT[row.fidelity.exact], left=True),
        Column("energy distance", mean(lambda fidelity: fidelity.distance, "+.3f")),
        Column("p (same distribution)", lambda row: f"{row.fidelity.p_value:.2g}"),
        Column("spread", mean(lambda fidelity: fidelity.spread, ".2f")),
        Column("roughness", mean(lambda fidelity: fidelity.roughness, ".2f")),
        Column("share of the rarer mode", mean(lambda fidelity: fidelity.rarer_mode, ".2f", least=2)),
    ]
    first = next(iter(results.values()))
    bimodal = sum(share is not None for share in first.rarer_mode)
    caption = (
        f"{chunks} chunks of every sampler at each of {len(first.distance)} observations, executed actions only, "
        f"against as many of {reference} drawn with other noise. Energy distance in units of {reference}'s spread, "
        f"unbiased: zero on average for the same distribution. Spread and roughness (mean second difference of the "
        f"actions) are relative to {reference}'s. Two modes were found at {bimodal} observations. Means over "
        f"observations with 95 % bootstrap intervals; p from permutations."
    )
    return markdown(columns, list(measured.values()), caption)


class _Measured(NamedTuple):
    name: str
    fidelity: Fidelity


def _mean_over_observations(values: Sequence[float]) -> Estimate:
    if len(values) < 2:
        return Estimate(values[0], values[0], values[0])
    return bootstrap_interval((values,), np.mean)


def fidelity_json(results: Mapping[str, Fidelity], chunks: int, provenance: Mapping[str, Any]) -> str:
    """Render every number as JSON, observation by observation.

    Args:
        results: of :func:`measure_fidelity`.
        chunks: drawn of each sampler at each observation.
        provenance: see :func:`collect_provenance`.
    """
    content = {
        "chunks": chunks,
        "samplers": {name: asdict(each) for name, each in results.items()},
        "provenance": dict(provenance),
    }
    return json.dumps(content, indent=1) + "\n"


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
    """Measure fidelity and write ``fidelity.json`` and ``fidelity.md`` into ``folder``.

    Args:
        contestants: a policy and samplers, ``ddpm`` among them.
        folder: a results folder of the same policy; its recorded observations are taken at even distances.
        observations: how many of them, at most.
        chunks: drawn of each sampler at each observation.
        seed: of all draws.
        provenance: kept with the result.

    Returns:
        A :class:`Fidelity` for each sampler.

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
