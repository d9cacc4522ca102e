"""Certify a sampler on a policy: exactness on recorded chunks, network evaluations and latency beside its rivals."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from specpolicy.control.latency_log import CallLog
from specpolicy.evaluation.latency import measure_latency
from specpolicy.evaluation.statistics import ratio_of_medians
from specpolicy.evaluation.summary import REFERENCE
from specpolicy.evaluation.verdicts import distribution_text, precision_note
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.compiled.runtime import RuntimeChain
from specpolicy.speculative.exactness import ExactnessReport, check_exactness
from specpolicy.speculative.result import SampleResult
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

SIGNIFICANCE = 1e-3
"""Below this corrected p-value a sampler is not certified."""

_POWER = 0.9
_BATCH = 20  # chunks recorded together
_RECOMPUTED = 10


class CertificateFailed(RuntimeError):
    """A sampler that calls itself exact is not, on this policy."""


@dataclass(frozen=True)
class Detectable:
    """The smallest deviations of the innovations that the tests would have found, with probability 0.9 each.

    Attributes:
        mean: shift of the mean, in standard deviations of a step.
        variance: relative error of the variance.
        step_mean: shift of the mean of one step alone.
        accepted: share of steps drawn from another distribution, a whole standard deviation away along one direction.
    """

    mean: float
    variance: float
    step_mean: float
    accepted: float


@dataclass(frozen=True)
class SamplerRow:
    """One sampler of the table.

    Attributes:
        name: of the sampler.
        exact: whether it has the distribution of its own DDPM chain.
        evaluations: sequential network evaluations a chunk, mean over calls.
        rows: states evaluated a chunk, mean over calls.
        speed: median latency of ``ddpm`` over this sampler's, with a 95 % interval; None for ``ddpm`` itself.
        precision: of the network where it was a reduced one, which is then the target.
    """

    name: str
    exact: bool
    evaluations: float
    rows: float
    speed: tuple[float, float, float] | None
    precision: str | None = None


@dataclass(frozen=True)
class Certificate:
    """What was found.

    Attributes:
        checkpoint: what was certified.
        sampler: its name.
        steps: K of the chain that it samples.
        chunks: recorded chunks.
        smallest: smallest p-value of the tests, corrected for their number.
        p_values: of each test.
        detectable: see :class:`Detectable`.
        recomputed: largest difference between the sampler's x̂0 and a fresh evaluation of the network, on some chunks.
        rows: one for each sampler of the table.
        encoding_ms: of the images of one chunk, contained in every sampler's time; None without cameras.
        findings: what is known of the checkpoint, line by line.
        provenance: versions, machine, source of the observations.
    """

    checkpoint: str
    sampler: str
    steps: int
    chunks: int
    smallest: float
    p_values: dict[str, float]
    detectable: Detectable
    recomputed: float
    rows: list[SamplerRow]
    encoding_ms: float | None = None
    findings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no test contradicts exactness, and the recorded x̂0 are the network's."""
        return self.smallest >= SIGNIFICANCE and self.recomputed <= 1e-3

    @property
    def verdict(self) -> str:
        """One line."""
        sampled = next(row for row in self.rows if row.name == self.sampler)
        chain = f"{self.steps}-step chain" + (f" of the {sampled.precision} network" if sampled.precision else "")
        numbers = f"{sampled.evaluations:.1f} sequential network evaluations for {self.steps} steps"
        if self.passed:
            return (
                f"PASSED: {self.sampler} has the distribution of the {chain} as far as {self.chunks} "
                f"chunks can tell (smallest corrected p = {self.smallest:.2g}), with {numbers}"
            )
        if self.recomputed > 1e-3:
            return (
                f"FAILED: the network does not repeat its own outputs (difference {self.recomputed:.2g}); it must be "
                "deterministic and in evaluation mode"
            )
        return (
            f"FAILED: {self.sampler} does not have the distribution of the {chain} "
            f"(smallest corrected p = {self.smallest:.2g} over {self.chunks} chunks)"
        )

    def write(self, path: Path) -> None:
        """Write as JSON, at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"passed": self.passed, "verdict": self.verdict, **asdict(self)}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def show(self, console: Console) -> None:
        """Print table, power and verdict."""
        table = Table(title=f"{self.checkpoint}: {self.sampler}")
        for column in ("sampler", "distribution", "sequential NFE", "rows", "speed, × ddpm [95 %]"):
            table.add_column(column, justify="left" if column in ("sampler", "distribution") else "right")
        for row in self.rows:
            speed = "1" if row.speed is None else "{:.2f} [{:.2f}, {:.2f}]".format(*row.speed)
            table.add_row(
                row.name,
                distribution_text(row.exact, row.precision),
                f"{row.evaluations:.1f}",
                f"{row.rows:.0f}",
                speed,
            )
        console.print(table)
        if note := precision_note(row.precision for row in self.rows):
            console.print(note, soft_wrap=True)
        if self.encoding_ms is not None:
            console.print("Times contain encoding the images once a chunk, measured apart from the samplers.")
        console.print(
            f"{len(self.p_values)} tests on {self.chunks} chunks; they would have found a shift of the mean of "
            f"{self.detectable.mean:.2g} σ, {self.detectable.step_mean:.2g} σ in a single step, a variance wrong by "
            f"{100 * self.detectable.variance:.2g} %, or {100 * self.detectable.accepted:.2g} % of steps that should "
            f"have been rejected (probability {_POWER:g} each)",
            soft_wrap=True,
        )
        console.print(self.verdict, soft_wrap=True)


def record_chunks(
    policy: DiffusionPolicy,
    sampler: Any,
    observations: Mapping[str, NDArray[Any]],
    chunks: int,
    seed: int,
) -> tuple[SampleResult, float]:
    """Sample chunks with their trajectories, cycling through the observations.

    Args:
        policy: in evaluation mode.
        sampler: with a ``process``; it must be able to record.
        observations: arrays ``(n, n_obs_steps, ...)``.
        chunks: how many to sample.
        seed: of the random streams.

    Returns:
        The chunks as one result on the CPU, and the largest difference between recorded and recomputed x̂0.
    """
    results, worst = [], 0.0
    count = len(next(iter(observations.values())))
    with torch.inference_mode(), progress_bar("recording chunks", chunks) as bar:
        for begin in range(0, chunks, _BATCH):
            which = np.arange(begin, min(begin + _BATCH, chunks))
            cond = policy.encode({name: part[which % count] for name, part in observations.items()})
            generators = [torch.Generator().manual_seed((seed << 32) + int(each)) for each in which]
            noise = torch.stack([torch.randn(policy.event_shape, generator=each) for each in generators])
            result = sampler(policy, noise.to(policy.device), cond=cond, generator=generators, record=True)
            if begin < _RECOMPUTED:
                worst = max(worst, _recomputed(policy, sampler, result, cond))
            assert result.trajectory is not None and result.x0 is not None
            results.append(
                (result.sample.cpu(), result.trajectory.cpu(), result.x0.cpu(), result.passes, result.evaluations)
            )
            bar.advance(len(which))
    sample, trajectory, x0, passes, evaluations = zip(*results, strict=True)
    return (
        SampleResult(
            torch.cat(sample), torch.cat(passes), torch.cat(evaluations),
            trajectory=torch.cat(trajectory, dim=1), x0=torch.cat(x0, dim=1),
        ),
        worst,
    )  # fmt: skip


def _recomputed(policy: DiffusionPolicy, sampler: Any, result: SampleResult, cond: Any) -> float:
    """Evaluate the network anew at recorded states, one state at a time, without the sampler."""
    assert result.trajectory is not None and result.x0 is not None
    target = sampler.network(policy) if isinstance(sampler, RuntimeChain) else policy
    process = sampler.process
    here = process.to(policy.device, result.trajectory.dtype)
    worst = 0.0
    for k in range(process.num_steps):
        row = torch.tensor([k], device=policy.device)
        state = result.trajectory[k, :1]
        output = target(state.to(result.sample.dtype), here.timesteps[row], cond[:1])
        x0 = here.x0(state, output.to(state.dtype), row)
        worst = max(worst, float((x0 - result.x0[k, :1]).abs().max()))
    return worst


def detectable(report: ExactnessReport, steps: int, chunks: int) -> Detectable:
    """Say what the tests of a report would have found with probability 0.9.

    Args:
        report: of the chunks.
        steps: steps with noise of the chain.
        chunks: recorded chunks.

    Returns:
        The smallest deviations; of two-sided z tests at :data:`SIGNIFICANCE`, corrected for the number of tests.
    """
    tests = len(report.p_values)
    reach = float(stats.norm.isf(SIGNIFICANCE / tests / 2) + stats.norm.ppf(_POWER))
    reach_of_a_step = float(stats.norm.isf(SIGNIFICANCE / tests / steps / 2) + stats.norm.ppf(_POWER))
    return Detectable(
        mean=reach / float(np.sqrt(report.count)),
        variance=reach * float(np.sqrt(2 / report.count)),
        step_mean=reach_of_a_step / float(np.sqrt(report.count / steps)),
        # Along the direction in which a draft is wrong there is one number for each chunk and step.
        accepted=min(1.0, reach / float(np.sqrt(steps * chunks))),
    )


def certify(
    policy: DiffusionPolicy,
    samplers: Mapping[str, Any],
    name: str,
    observations: Mapping[str, NDArray[Any]],
    *,
    checkpoint: str,
    chunks: int = 200,
    calls: int = 30,
    seed: int = 0,
    findings: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Certificate:
    """Test a sampler's exactness on a policy and time it beside others.

    Args:
        policy: in evaluation mode.
        samplers: by name; ``ddpm`` among them is what speeds are relative to.
        name: of the sampler to certify; it must call itself exact and be able to record.
        observations: arrays ``(n, n_obs_steps, ...)``, raw units.
        checkpoint: name in the certificate.
        chunks: recorded for the tests, at least 20.
        calls: timed calls of each sampler at batch size 1.
        seed: of the random streams.
        findings: lines about the checkpoint.
        provenance: kept with the certificate.

    Returns:
        The certificate.

    Raises:
        ValueError: the sampler is approximate, or there are too few chunks.
    """
    sampler = samplers[name]
    if not sampler.exact or not hasattr(sampler, "process"):
        raise ValueError(
            f"sampler={name} is approximate, so there is nothing to certify; `specpolicy fidelity` measures how far"
        )
    if chunks < 20:
        raise ValueError(f"chunks={chunks}; the tests need at least 20")
    result, recomputed = record_chunks(policy, sampler, observations, chunks, seed)
    report: ExactnessReport = check_exactness(sampler.process, result)
    noisy = int((sampler.process.sigma > 0).sum())
    count = len(next(iter(observations.values())))
    singles = [
        {key: part[index : index + 1] for key, part in observations.items()} for index in range(min(calls, count))
    ]
    run = measure_latency(policy, samplers, singles, calls=calls, warmup=2, seed=seed)
    encoding = encoding_nanoseconds(policy, observations, calls, seed)
    logs = {
        each: replace(log, nanoseconds=[spent + encoding for spent in log.nanoseconds])
        for each, log in run.samplers.items()
    }
    return Certificate(
        checkpoint=checkpoint,
        sampler=name,
        steps=sampler.process.num_steps,
        chunks=chunks,
        smallest=report.smallest,
        p_values=report.p_values,
        detectable=detectable(report, noisy, chunks),
        recomputed=recomputed,
        rows=[_row(each, log, logs.get(REFERENCE)) for each, log in logs.items()],
        findings=list(findings),
        encoding_ms=encoding / 1e6 if encoding else None,
        provenance={"device": run.device, "threads": run.threads, "calls": calls, "seed": seed, **(provenance or {})},
    )


def encoding_nanoseconds(
    policy: DiffusionPolicy, observations: Mapping[str, NDArray[Any]], calls: int, seed: int = 0
) -> int:
    """Measure what encoding the images of one chunk takes, where observations hold features in their place.

    Args:
        policy: with or without cameras.
        observations: those that were timed; cameras that are among them as images have been timed already.
        calls: timed, each with frames of its own, since a frame is not encoded twice.
        seed: of the frames.

    Returns:
        The median; 0 without such cameras.
    """
    given = {key for key, part in observations.items() if np.asarray(part).dtype == np.uint8}
    shapes = {key: shape for key, shape in policy.observations.images.items() if key not in given}
    if not shapes:
        return 0
    numbers, spent = np.random.default_rng(seed), list[int]()
    for _ in range(calls + 1):
        frames = {
            key: numbers.integers(0, 256, (1, policy.observations.horizon, *shape), dtype=np.uint8)
            for key, shape in shapes.items()
        }
        begun = time.perf_counter_ns()
        with torch.inference_mode():
            for features in policy.encoders.encode(frames, policy.device).values():
                features.cpu()
        spent.append(time.perf_counter_ns() - begun)
    policy.reset()
    return int(np.median(spent[1:]))  # the first is not counted


def _row(name: str, log: CallLog, reference: CallLog | None) -> SamplerRow:
    speed = None
    if reference is not None and log is not reference:
        estimate = ratio_of_medians(np.array(reference.nanoseconds), np.array(log.nanoseconds))
        speed = (float(estimate.value), float(estimate.low), float(estimate.high))
    return SamplerRow(
        name, log.exact, float(np.mean(log.passes)), float(np.mean(log.evaluations)), speed, log.precision
    )
