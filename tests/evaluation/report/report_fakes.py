"""Results of an invented task to report on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation_fakes import record

from specpolicy.control.latency_log import CallLog, LatencyRun
from specpolicy.evaluation.manifest import Manifest
from specpolicy.evaluation.results import new_shard, write_shard
from specpolicy.rollout.episodes import EpisodeResult

CHAIN = {"_target_": "specpolicy.samplers.sequential", "_partial_": True, "num_inference_steps": 100}
DRAFTED = CHAIN | {"_target_": "specpolicy.samplers.speculative"}
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddpm": {"exact": True, "recipe": CHAIN},
    "free": {"exact": True, "recipe": DRAFTED},
    "short": {"exact": True, "recipe": DRAFTED | {"num_inference_steps": 20}},
    "ddim": {"exact": False, "recipe": {"_target_": "specpolicy.samplers.ddim", "num_inference_steps": 10}},
}
SPEED = {"ddpm": 500, "free": 100, "short": 50, "ddim": 25}


def episodes(successes: dict[str, Sequence[bool]], task: str = "reach", **more: Any) -> list[EpisodeResult]:
    """One for each outcome, seeds counted from 0."""
    return [
        replace(record(name, seed, success=won, **more), task=task)
        for name, outcomes in successes.items()
        for seed, won in enumerate(outcomes)
    ]


def timed(names: Sequence[str] = tuple(SAMPLERS), calls: int = 100, cpu: str = "here") -> LatencyRun:
    """Calls as long as ``SPEED`` says, in milliseconds, with a little drift."""
    logs = {
        name: CallLog(
            bool(SAMPLERS[name]["exact"]),
            [int(1e6 * SPEED[name] * (1 + 0.001 * call)) for call in range(calls)],
            [10] * calls,
            [10] * calls,
        )
        for name in names
    }
    return LatencyRun(logs, "cpu", 1, 0, 1, {"machine": {"cpu": cpu, "device": "cpu"}})


def write_folder(
    folder: Path,
    records: Sequence[EpisodeResult] = (),
    latency: LatencyRun | None = None,
    samplers: dict[str, dict[str, Any]] | None = None,
    **configuration: Any,
) -> Path:
    """A results folder of the task that the folder is called after."""
    folder.mkdir(parents=True)
    about = {"task": folder.name, "environment": {"id": "evaluation_fakes:Reach-v0"}, "checkpoint": "0f"}
    provenance = {"machine": {"cpu": "here", "device": "cpu"}, "command": ["/bin/specpolicy", "rollout", "a=b c"]}
    Manifest({**about, **configuration}, samplers or SAMPLERS, [provenance]).write(folder)
    if records:
        write_shard(new_shard(folder), records)
    if latency is not None:
        latency.write(folder / "latency.json")
    return folder
