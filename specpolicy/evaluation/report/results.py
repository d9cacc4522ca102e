"""Where the numbers of a task come from, in the order in which a reader asks."""

from __future__ import annotations

import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.evaluation.latency import CallLog, LatencyRun
from specpolicy.evaluation.plots import SamplerStyle, styles_of
from specpolicy.evaluation.report.formatting import counted, milliseconds, ranges
from specpolicy.evaluation.results import MANIFEST, Manifest, read_results, shard_paths
from specpolicy.evaluation.statistics import ratio_of_sums
from specpolicy.evaluation.summary import SummaryRow, summarize
from specpolicy.rollout.episodes import EpisodeResult


@dataclass(frozen=True)
class ReportSettings:
    """Choices that change the page, not the results.

    Attributes:
        reference: the sampler that others are compared with; see :func:`read_folder`.
        videos: show clips, and film them where they are missing.
        film: the sampler to film; by default the one that the verdict names first.
        checkpoint: where the policy is, if it has moved since the episodes were run.
        device: where the policy computes while it is filmed.
        control_hz: control rate of a task's environment, None where it is not known; tells which samplers keep up.
    """

    reference: str | None = None
    videos: bool = True
    film: str | None = None
    checkpoint: str | None = None
    device: str = "cpu"
    control_hz: Callable[[str], float | None] = lambda task: None


PARTS = 25


@dataclass(frozen=True)
class Acceptance:
    """Acceptance by part of the chain; entry ``i`` of each array belongs to one part.

    Attributes:
        position: middle of the part, 0 (noise) to 100 (action).
        rate: share of its drafted steps that were accepted, of those that verification reached.
        error: standard error of the rate, between calls; NaN where there is no telling.
        overall: the share over the whole chain.
    """

    position: NDArray[np.float64]
    rate: NDArray[np.float64]
    error: NDArray[np.float64]
    overall: float


def acceptance_of(log: CallLog) -> Acceptance | None:
    """Acceptance of a sampler, None if it has no rounds or its log does not say how much each of them drafted.

    A round that starts at ``s``, drafts ``d`` steps and accepts ``a`` of them has accepted the steps ``s … s + a − 1``
    and, if ``a < d``, rejected step ``s + a``; it says nothing of later ones.
    """
    if not log.rounds or not log.drafted:
        return None
    steps = max(start + accepted + 1 for call in log.rounds for start, accepted in call)
    parts = min(PARTS, steps)
    tried, taken = np.zeros((2, len(log.rounds), steps))
    for call, (rounds, drafted) in enumerate(zip(log.rounds, log.drafted, strict=True)):
        for (start, accepted), length in zip(rounds, drafted, strict=True):
            tried[call, start : start + accepted + (accepted < length)] += 1
            taken[call, start : start + accepted] += 1
    edges = np.linspace(0, steps, parts + 1).round().astype(int)[:-1]
    tried, taken = np.add.reduceat(tried, edges, axis=1), np.add.reduceat(taken, edges, axis=1)
    known = np.flatnonzero(tried.sum(axis=0))
    if not len(known):
        return None
    found = np.array([ratio_of_sums(taken[:, part], tried[:, part]) for part in known])
    middles = 100 * (edges + np.append(edges[1:], steps)) / 2 / steps
    return Acceptance(middles[known], found[:, 0], found[:, 1], float(taken.sum() / tried.sum()))


@dataclass(frozen=True)
class RealTimeBudget:
    """How fast the robot uses up actions.

    Attributes:
        control_hz: actions a second.
        actions: executed of each chunk.
    """

    control_hz: float
    actions: int

    @property
    def chunk_ms(self) -> float:
        """How long the actions of one chunk last, in milliseconds."""
        return 1e3 * self.actions / self.control_hz

    def __str__(self) -> str:
        return f"{self.actions} actions at {self.control_hz:g} Hz last {milliseconds(self.chunk_ms)} ms"

    def kept_by(self, row: SummaryRow) -> bool | None:
        """Whether 95 of 100 chunks are ready within the time that one lasts; None if that is not known."""
        slow = row.latency.p95 if row.latency else None
        return None if slow is None else slow.value <= self.chunk_ms


def budget_of(results: TaskResults, control_hz: float | None) -> RealTimeBudget | None:
    """The pace of a task, None where the control rate or the length of a chunk is not known."""
    policy = results.manifest.configuration.get("policy")
    actions = policy.get("n_action_steps") if isinstance(policy, dict) else None
    return RealTimeBudget(control_hz, actions) if control_hz and isinstance(actions, int) and actions > 0 else None


# Recipes that sample the DDPM chain of the policy's own scheduler, whatever their drafter and window.
_CHAINS = tuple(f"specpolicy.samplers.{name}" for name in ("sequential", "speculative", "linear", "auto"))


@dataclass(frozen=True)
class TargetDistribution:
    """The DDPM chain of the policy's scheduler with so many steps, with matched noise or with the scheduler's own."""

    steps: int
    matched: bool = False

    def __str__(self) -> str:
        return f"{self.steps} {'matched ' if self.matched else ''}steps"


def target_distribution_of(recipe: Any) -> TargetDistribution | None:
    """The law of an exact sampler's recipe as a manifest keeps it; None if the recipe does not tell."""
    recipe = eager(recipe)
    if not isinstance(recipe, Mapping) or recipe.get("_target_") not in _CHAINS:
        return None
    steps = recipe.get("num_inference_steps")
    return TargetDistribution(steps, bool(recipe.get("analytic", False))) if isinstance(steps, int) else None


def eager(recipe: Any) -> Any:
    """The recipe of what a compiled sampler was compiled from; any other recipe is its own."""
    if isinstance(recipe, Mapping) and recipe.get("_target_") == "specpolicy.samplers.compiled":
        return recipe.get("sampler")
    return recipe


LATENCY = "latency.json"
REFERENCE = "ddpm"


class ReportError(ValueError):
    """There is nothing to report on."""


@dataclass(frozen=True)
class TaskResults:
    """One results folder.

    Attributes:
        folder: where it is.
        manifest: what it holds.
        records: its finished episodes.
        latency: its timed calls, if there are any.
        reference: the sampler that others are compared with; None if there is none to compare with.
        rows: see :func:`summarize`.
        problems: what could not be read, one sentence each.
        cast: samplers of all tasks on the page, which share their colours.
        namesake: whether another folder on the page is of the same task.
    """

    folder: Path
    manifest: Manifest
    records: Sequence[EpisodeResult]
    latency: LatencyRun | None
    reference: str | None
    rows: Sequence[SummaryRow]
    problems: Sequence[str] = ()
    cast: Sequence[str] = ()
    namesake: bool = False

    @property
    def heading(self) -> str:
        """The task, and which folder of that task it is if there are several."""
        folder = self.folder.resolve().name
        return f"{self.task} ({folder})" if self.namesake and folder != self.task else self.task

    @property
    def task(self) -> str:
        """Its name; that of the folder where the manifest does not say."""
        return str(self.manifest.configuration.get("task", self.folder.resolve().name))

    @cached_property
    def looks(self) -> dict[str, SamplerStyle]:
        """Colour and name of each sampler."""
        return styles_of(self.rows, self.cast)

    @cached_property
    def laws(self) -> dict[str, TargetDistribution | None]:
        """What each exact sampler samples, as far as its recipe tells."""
        recipes = {name: entry.get("recipe") for name, entry in self.manifest.samplers.items()}
        return {
            row.sampler: target_distribution_of(recipes.get(row.sampler)) if row.exact else None for row in self.rows
        }

    def row(self, sampler: str | None) -> SummaryRow | None:
        """The row of a sampler, None if it did not take part."""
        return next((row for row in self.rows if row.sampler == sampler), None)

    def marked(self, sampler: str) -> str:
        """The sampler's name, with the word if it is approximate."""
        row = self.row(sampler)
        exact = row.exact if row else self.manifest.samplers.get(sampler, {}).get("exact")
        return f"{sampler} (approximate)" if exact is False else sampler

    def same_law(self, row: SummaryRow) -> bool:
        """Whether this sampler is known to have the reference's law."""
        law = self.laws.get(row.sampler)
        return row.sampler == self.reference or (law is not None and law == self.laws.get(self.reference or ""))


def read_folder(folder: str | Path, reference: str | None = None) -> tuple[list[TaskResults], dict[Path, str]]:
    """Read a results folder, or a folder of them.

    Args:
        folder: as written by ``specpolicy rollout``, or with one such folder for each task.
        reference: the sampler to compare with; by default ``ddpm``, without it the exact sampler of the most passes.

    Returns:
        The results of each task, by name; and the folders that could not be read, with the reason.

    Raises:
        ReportError: there is no such folder, or no results in it that can be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ReportError(f"there is no folder {root}; give the out= folder of specpolicy rollout or evaluate")
    folders = [root] if _holds_results(root) else sorted(path for path in root.iterdir() if _holds_results(path))
    if not folders:
        raise ReportError(
            f"{root} holds no results: no {MANIFEST} in it or in a folder below it; "
            "give the out= folder of specpolicy rollout or evaluate"
        )
    read: list[TaskResults] = []
    failed: dict[Path, str] = {}
    for path in folders:
        try:
            read.append(read_task(path, reference))
        except ValueError as error:
            failed[path] = str(error)
    if not read:
        raise ReportError("; ".join(failed.values()))
    read.sort(key=lambda results: results.task)
    cast = list(dict.fromkeys(row.sampler for results in read for row in results.rows))
    tasks = Counter(results.task for results in read)
    return [replace(results, cast=cast, namesake=tasks[results.task] > 1) for results in read], failed


def read_task(folder: Path, reference: str | None = None) -> TaskResults:
    """Read one results folder; see :func:`read_folder`.

    Raises:
        ManifestError: its manifest is missing or damaged.
        ReportError: it holds neither episodes nor timed calls, or has no sampler called ``reference``.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records, manifest = read_results(folder)
    problems = [str(warning.message) for warning in caught]
    latency = None
    try:
        latency = LatencyRun.read(folder / LATENCY) if (folder / LATENCY).exists() else None
    except (ValueError, OSError) as error:
        problems.append(str(error))
    if not records and latency is None:
        reason = f" ({'; '.join(problems)})" if problems else ""
        raise ReportError(f"{folder} holds no finished episodes and no measured latency{reason}: run them first")
    exact = {name: bool(entry["exact"]) for name, entry in manifest.samplers.items() if "exact" in entry}
    chosen = _reference(summarize(records, latency, exact), reference, folder)
    rows = summarize(records, latency, exact, chosen or REFERENCE)
    return TaskResults(folder, manifest, records, latency, chosen, rows, problems)


def _holds_results(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).exists() or bool(shard_paths(folder)))


def _reference(rows: Sequence[SummaryRow], wanted: str | None, folder: Path) -> str | None:
    names = [row.sampler for row in rows]
    if wanted is not None:
        if wanted not in names:
            raise ReportError(f"{folder} has no sampler {wanted!r} to compare with; it has {', '.join(names)}")
        return wanted
    if REFERENCE in names:
        return REFERENCE
    exact = [row for row in rows if row.exact and row.passes is not None]
    return max(exact, key=lambda row: row.passes or 0.0).sampler if exact else None


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
    crashes: Sequence[EpisodeResult]
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
        horizons = f"{policy.get('horizon')} actions predicted, {policy.get('n_action_steps')} executed"
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
