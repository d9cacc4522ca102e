"""Controllers: executor × sampler × injected latency."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specpolicy.control.executors import Executor
from specpolicy.control.latency import Constant, Empirical, Latency, LogNormal, Measured
from specpolicy.control.latency_log import LatencyRun

FORMS = "milliseconds such as 200, measured, recorded, recorded:SAMPLER, or lognormal:MEDIAN_MS:SIGMA"


class LatencyError(ValueError):
    """A latency that was asked for cannot be had."""


@dataclass(frozen=True)
class InjectedLatency:
    """A latency with its name. It is independent of the sampler that computes: the two are chosen apart.

    Attributes:
        label: in tables and figures, e.g. ``"200 ms"``.
        latency: its distribution.
        description: for the record; a results folder refuses a latency of the same label with another description.
    """

    label: str
    latency: Latency
    description: dict[str, Any] = field(default_factory=dict)


def parse_latency(text: str | float, sampler: str, recording: str | Path) -> InjectedLatency:
    """Read a latency.

    Args:
        text: one of :data:`FORMS`.
        sampler: whose recorded calls ``recorded`` takes.
        recording: ``latency.json`` of a rollout or an evaluation.

    Returns:
        The latency.

    Raises:
        LatencyError: another form, or no such recording.
    """
    kind, *rest = str(text).strip().split(":")
    if kind == "measured" and not rest:
        return InjectedLatency("measured", Measured(), {"distribution": "measured"})
    if kind == "recorded" and len(rest) <= 1:
        return _recorded(rest[0] if rest else sampler, Path(recording), bool(rest))
    try:
        numbers = [float(part) for part in (rest if kind == "lognormal" else [kind, *rest])]
    except ValueError:
        numbers = []
    try:
        if kind == "lognormal" and len(numbers) == 2:
            median, sigma = numbers
            distribution: Latency = LogNormal(median / 1e3, sigma)
            return InjectedLatency(
                f"~{median:g} ms", distribution, {"distribution": "lognormal", "median_ms": median, "sigma": sigma}
            )
        if kind != "lognormal" and len(numbers) == 1:
            return InjectedLatency(
                f"{numbers[0]:g} ms", Constant(numbers[0] / 1e3), {"distribution": "constant", "ms": numbers[0]}
            )
    except ValueError as error:
        raise LatencyError(f"latency={text!r}: {error}") from error
    raise LatencyError(f"latency={text!r}; write {FORMS}")


def _recorded(sampler: str, path: Path, named: bool) -> InjectedLatency:
    if not path.is_file():
        raise LatencyError(
            f"there is no latency recording at {path}; run `specpolicy rollout` with this sampler and name its "
            "latency.json with recording=..."
        )
    run = LatencyRun.read(path)
    if sampler not in run.samplers:
        raise LatencyError(f"{path} holds no calls of {sampler!r}; it has {', '.join(run.samplers)}")
    nanoseconds = run.samplers[sampler].nanoseconds
    distribution = Empirical(tuple(each / 1e9 for each in nanoseconds))
    return InjectedLatency(
        f"recorded {sampler}" if named else "recorded",
        distribution,
        {
            "distribution": "recorded",
            "sampler": sampler,
            "calls": len(nanoseconds),
            "median_ms": round(1e3 * distribution.typical_s, 3),
            "sha256": hashlib.sha256(json.dumps(nanoseconds).encode()).hexdigest(),
            "device": run.device,
            "threads": run.threads,
            "cpu": run.provenance.get("machine", {}).get("cpu"),
        },
    )


@dataclass(frozen=True)
class ControllerConfig:
    """One controller: a sampler, an executor, and what an inference is said to cost.

    Attributes:
        executor_name, executor: how it lives with the latency.
        sampler: name of what computes the chunks.
        injected: the latency on the simulated clock, whatever the sampler takes.
        settings: of the executor, for the record.
    """

    executor_name: str
    executor: Executor
    sampler: str
    injected: InjectedLatency
    settings: Any = None

    @property
    def name(self) -> str:
        """Identifies it in a results folder and in tables."""
        return f"{self.executor_name}, {self.sampler}, {self.injected.label}"

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return file_name(self.name)

    def recipe(self, sampler: Mapping[str, Any]) -> dict[str, Any]:
        """Describe it for a results folder.

        Args:
            sampler: what the folder keeps of its sampler: whether it is exact, and its recipe.

        Returns:
            Plain data.
        """
        return {
            **sampler,
            "sampler": self.sampler,
            "executor": {"name": self.executor_name, "settings": self.settings or repr(self.executor)},
            "injected": self.injected.description,
        }


def file_name(name: str) -> str:
    """Turn a controller's name into a file name.

    Args:
        name: e.g. ``"lockstep, ddpm, ~120 ms"``.

    Returns:
        E.g. ``"lockstep-ddpm-about-120-ms"``.
    """
    return re.sub(r"[^\w.+-]+", "-", name.replace("~", "about-"))


def grid(
    executors: Mapping[str, tuple[Executor, Any]],
    latencies: Mapping[str, Sequence[InjectedLatency]],
) -> list[ControllerConfig]:
    """Combine executors, samplers and latencies, executor by executor within a sampler.

    Where the world waits, the latency changes nothing but the trace's times: such executors run at the first one only.

    Args:
        executors: by name, with their settings for the record.
        latencies: for each sampler those to inject.

    Returns:
        One controller for each combination.
    """
    return [
        ControllerConfig(name, executor, sampler, injected, settings)
        for sampler, offered in latencies.items()
        for name, (executor, settings) in executors.items()
        for injected in (offered[:1] if executor.config.world_waits else offered)
    ]
