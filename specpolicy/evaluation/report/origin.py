"""Where the numbers of a task come from, in the order in which a reader asks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..episodes import EpisodeRecord
from .results import TaskResults
from .words import counted, ranges

_MOST_CRASHES = 30


@dataclass(frozen=True)
class Origin:
    """What stands at the foot of a task.

    Attributes:
        facts: name and value.
        runs: one line for each run that added to the results, the latest first.
        command: what the latest run was started with; empty if it is not known.
        crashes: sampler, seed, repeat and error.
        more_crashes: how many are not listed.
    """

    facts: Sequence[tuple[str, str]]
    runs: Sequence[str]
    command: str
    crashes: Sequence[EpisodeRecord]
    more_crashes: int


def origin_of(results: TaskResults) -> Origin:
    """See :class:`Origin`."""
    runs = results.manifest.provenance[::-1]
    crashes = [record for record in results.records if record.crashed]
    return Origin(
        facts=list(_facts(results)),
        runs=[_run(run) for run in runs],
        command=_command(runs[0]) if runs else "",
        crashes=crashes[:_MOST_CRASHES],
        more_crashes=max(len(crashes) - _MOST_CRASHES, 0),
    )


def machine_of(results: TaskResults) -> str:
    """The machine in words, that of the latency if it was measured; empty if nothing is known."""
    sources = [results.latency.provenance if results.latency else {}, *results.manifest.provenance[::-1]]
    return next(filter(None, (_machine(source.get("machine") or {}) for source in sources)), "")


def _facts(results: TaskResults) -> Iterator[tuple[str, str]]:
    configuration, latency = results.manifest.configuration, results.latency
    environment = dict(configuration.get("environment") or {})
    name = str(environment.pop("id", ""))
    if name:
        yield "Environment", " ".join([name, *(f"{key}={value}" for key, value in environment.items())])
    policy = configuration.get("policy")
    if isinstance(policy, Mapping):
        network = policy.get("network")
        kind = network.get("name", "") if isinstance(network, Mapping) else ""
        horizons = f"{policy.get('action_horizon')} actions predicted, {policy.get('executed_actions')} executed"
        yield "Policy", ", ".join(filter(None, [str(kind), horizons]))
    if configuration.get("checkpoint"):
        yield "Checkpoint, SHA-256", str(configuration["checkpoint"])
    if results.records:
        seeds = [record.seed for record in results.records]
        most = 1 + max(record.repeat for record in results.records)
        upto = "up to " if any(row.episodes != most * len(set(seeds)) for row in results.rows) else ""
        yield "Seeds", f"{ranges(seeds)} ({counted(len(set(seeds)), 'seed')}, {upto}{counted(most, 'episode')} each)"
        crashed = sum(record.crashed for record in results.records)
        yield "Episodes", f"{len(results.records)}, {crashed} crashed"
    if latency is not None:
        calls = ranges([len(log.nanoseconds) for log in latency.samplers.values()])
        yield (
            "Latency",
            (
                f"{calls} calls of each sampler after {latency.warmup} that do not count, in turn, batch size 1, on "
                f"{latency.observations} recorded observations; {latency.device}, {counted(latency.threads, 'thread')}"
            ),
        )
        yield "Latency measured on", _machine(latency.provenance.get("machine") or {}) or "not recorded"
    packages = (results.manifest.provenance or [{}])[-1].get("packages") or {}
    python = (results.manifest.provenance or [{}])[-1].get("python")
    versions = [*([f"python {python}"] if python else []), *(f"{name} {version}" for name, version in packages.items())]
    if versions:
        yield "Versions", ", ".join(versions)
    yield "Results folder", str(results.folder)


def _run(run: Mapping[str, Any]) -> str:
    git = run.get("git") or {}
    revision = f"revision {git['revision'][:12]}" if git.get("revision") else "no git revision"
    changed = " with uncommitted changes" if git.get("dirty") else ""
    seeds = counted(len(run["seeds"]), "seed") if run.get("seeds") else ""
    machine = _machine(run.get("machine") or {})
    return ", ".join(filter(None, [str(run.get("time_utc", "")), revision + changed, seeds, machine]))


def _machine(machine: Mapping[str, Any]) -> str:
    if not machine:
        return ""
    processor = machine.get("gpu") or machine.get("cpu") or "unknown processor"
    cores, threads = machine.get("cores"), machine.get("torch_threads")
    parts = [str(processor), str(machine.get("device", ""))]
    parts += [counted(cores, "core")] if isinstance(cores, int) else []
    parts += [counted(threads, "thread") + " of torch"] if isinstance(threads, int) else []
    return ", ".join(filter(None, parts))


def _command(run: Mapping[str, Any]) -> str:
    words = run.get("command")
    if not isinstance(words, list) or not words:
        return ""
    return shlex.join([Path(str(words[0])).name, *map(str, words[1:])])
