"""How close the distribution of a sampler's action chunks is to that of the full DDPM chain.

Chunks are drawn at the observations that a results folder has recorded and compared by energy distance (Székely and
Rizzo 2013) with a permutation test, by spread, smoothness, and the share of the rarer of two modes.
"""

from __future__ import annotations

import json
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
from specpolicy.evaluation.summary import REFERENCE
from specpolicy.evaluation.tables import MISSING, Column, interval_text, markdown
from specpolicy.evaluation.two_sample import energy_distance, equality_p_value
from specpolicy.evaluation.verdicts import distribution_text, precision_note
from specpolicy.policies.protocols import (
    ChunkPolicy,
    ChunkReusingSampler,
    ChunkSampler,
    Observation,
    SampleCost,
    reduced_precision,
)
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

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
        nfe: sequential network evaluations a chunk, mean over all chunks; None in older files, as the rest is.
        rows: states evaluated a chunk, likewise.
        precision: of the network where it was a reduced one: exact is then for the reduced network's distribution.
    """

    exact: bool
    distance: list[float] = field(default_factory=list)
    coefficient: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    roughness: list[float] = field(default_factory=list)
    rarer_mode: list[float | None] = field(default_factory=list)
    p_value: float = 1.0
    nfe: float | None = None
    rows: float | None = None
    precision: str | None = None


def measure_fidelity(
    policy: ChunkPolicy,
    samplers: Mapping[str, ChunkSampler],
    observations: Sequence[Observation],
    *,
    chunks: int = 200,
    reference: str = REFERENCE,
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
    if reusing := [name for name, each in samplers.items() if isinstance(each, ChunkReusingSampler)]:
        raise ValueError(
            f"{', '.join(reusing)}: chunks that start from the one before have no distribution at a single "
            "observation; leave them out of fidelity"
        )
    results: dict[str, Fidelity] = {}
    with progress_bar("drawing chunks", total=(len(samplers) + 1) * len(observations)) as bar:

        def draw(name: str, stream: int) -> tuple[Drawn, list[SampleCost]]:
            bar.describe(f"drawing chunks, {name}")
            drawn, costs = [], []
            for index, observation in enumerate(observations):
                generator = episode_generator(seed + index, stream)
                actions, cost = _draw(policy, samplers[name], observation, chunks, generator)
                drawn.append(actions)
                costs.append(cost)
                bar.advance()
            return np.stack(drawn), costs

        measure, _ = draw(reference, 0)
        # Coordinates differ in unit (metres, radians, a gripper): each is scaled by its deviation over all draws.
        scale = np.maximum(measure.std(axis=(0, 1, 2)), 1e-6)
        measure = measure / scale
        modes = [find_modes(each, seed) for each in measure]
        for number, (name, sampler) in enumerate(samplers.items(), start=1):
            drawn, costs = draw(name, number)
            mine = drawn / scale
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
                nfe=float(np.mean([each.passes.double().mean() for each in costs])),
                rows=float(np.mean([each.evaluations.double().mean() for each in costs])),
                precision=reduced_precision(sampler),
            )
    return results


def _draw(
    policy: ChunkPolicy, sampler: ChunkSampler, observation: Observation, chunks: int, generator: torch.Generator
) -> tuple[NDArray[np.float64], SampleCost]:
    repeated = {name: np.repeat(part, chunks, axis=0) for name, part in observation.items()}
    chunk = policy.predict_action(repeated, sampler, generator)
    return np.asarray(chunk.actions, dtype=np.float64), chunk.result


def fidelity_table(results: Mapping[str, Fidelity], chunks: int) -> str:
    """Render a markdown table, one line a sampler, means over observations with 95 % bootstrap intervals.

    Args:
        results: of :func:`measure_fidelity`.
        chunks: drawn of each sampler at each observation.

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
        Column("sampler", lambda row: row.name + (" (drawn again)" if row.name == REFERENCE else ""), left=True),
        Column("distribution", lambda row: distribution_text(row.fidelity.exact, row.fidelity.precision), left=True),
        Column("NFE", lambda row: MISSING if row.fidelity.nfe is None else f"{row.fidelity.nfe:.1f}"),
        Column("rows", lambda row: MISSING if row.fidelity.rows is None else f"{row.fidelity.rows:.0f}"),
        Column("energy distance", mean(lambda fidelity: fidelity.distance, "+.3f")),
        Column("p (same distribution)", lambda row: f"{row.fidelity.p_value:.2g}"),
        Column("spread", mean(lambda fidelity: fidelity.spread, ".2f")),
        Column("roughness", mean(lambda fidelity: fidelity.roughness, ".2f")),
        Column("share of the rarer mode", mean(lambda fidelity: fidelity.rarer_mode, ".2f", least=2)),
    ]
    first = next(iter(results.values()))
    note = precision_note(each.precision for each in results.values())
    bimodal = sum(share is not None for share in first.rarer_mode)
    caption = (
        f"{chunks} chunks of every sampler at each of {len(first.distance)} observations, executed actions only, "
        f"against as many of {REFERENCE} drawn with other noise. Energy distance in units of {REFERENCE}'s spread, "
        f"unbiased: zero on average for the same distribution. Spread and roughness (mean second difference of the "
        f"actions) are relative to {REFERENCE}'s. Two modes were found at {bimodal} observations. Means over "
        f"observations with 95 % bootstrap intervals; p from permutations." + (f" {note}" if note else "")
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
