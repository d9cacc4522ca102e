"""The results that a page reports on, read from disk, and where they come from.

Whatever a folder holds is taken as plain data: a name in it means something only where it is in a table of this module.
"""

from __future__ import annotations

import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from specpolicy.control.latency_log import LatencyRun
from specpolicy.evaluation.manifest import MANIFEST, Manifest, manifest_precision
from specpolicy.evaluation.plots import SamplerStyle, styles_of
from specpolicy.evaluation.results import read_results, shard_paths
from specpolicy.evaluation.summary import REFERENCE, SummaryRow, summarize
from specpolicy.evaluation.tables import counted, milliseconds, number_ranges
from specpolicy.evaluation.verdicts import MARGIN, distribution_text
from specpolicy.rollout.episodes import EpisodeResult


@dataclass(frozen=True)
class ReportSettings:
    """Choices that change the page, not the results.

    Attributes:
        reference: the sampler that others are compared with; see :func:`read_folder`.
        videos: link the videos in the results folder.
        control_hz: gives the control rate of a task's environment in Hz, None where it is not known.
    """

    reference: str | None = None
    videos: bool = True
    control_hz: Callable[[str], float | None] = lambda task: None


@dataclass(frozen=True)
class RealTimeBudget:
    """The time that a robot leaves its policy.

    Attributes:
        control_hz: actions a second.
        actions: executed of each chunk.
    """

    control_hz: float
    actions: int

    @property
    def chunk_ms(self) -> float:
        """Compute how long the actions of one chunk last, in milliseconds."""
        return 1e3 * self.actions / self.control_hz

    def __str__(self) -> str:
        return f"{self.actions} actions at {self.control_hz:g} Hz last {milliseconds(self.chunk_ms)} ms"

    def kept_by(self, row: SummaryRow) -> bool | None:
        """Tell whether 95 of 100 chunks are ready within the time that one lasts; None if that is not known."""
        slow = row.latency.p95 if row.latency else None
        return None if slow is None else slow.value <= self.chunk_ms


def budget_of(results: TaskResults, control_hz: float | None) -> RealTimeBudget | None:
    """Compute the real-time budget of a task.

    Args:
        results: of the task.
        control_hz: its control rate in Hz, if known.

    Returns:
        The budget; None where the control rate or the number of executed actions is not known.
    """
    actions = mapping(results.manifest.configuration.get("policy")).get("n_action_steps")
    return RealTimeBudget(control_hz, actions) if control_hz and isinstance(actions, int) and actions > 0 else None


def mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, else an empty one: manifests may hold anything.

    Args:
        value: anything.
    """
    return value if isinstance(value, Mapping) else {}


# Recipes that sample the DDPM chain of the policy's own scheduler, whatever their drafter and window.
CHAINS = tuple(f"specpolicy.samplers.{name}" for name in ("sequential", "speculative", "calibrated", "default"))


@dataclass(frozen=True)
class TargetDistribution:
    """The DDPM chain of the policy's scheduler with so many steps, with analytic or with the scheduler's own noise.

    With a ``precision`` it is the chain of the network in that reduced precision.
    """

    steps: int
    analytic: bool = False
    precision: str | None = None

    def __str__(self) -> str:
        steps = f"{self.steps} {'analytic ' if self.analytic else ''}steps"
        return f"{steps}, {self.precision} network" if self.precision else steps


def target_distribution_of(recipe: Any, policy: Any = None) -> TargetDistribution | None:
    """Look up the distribution of an exact sampler's recipe.

    Args:
        recipe: as a manifest keeps it; compared with names of our own, never instantiated.
        policy: configuration of the policy, which has the number of steps where the recipe leaves it open.

    Returns:
        The distribution; None if the recipe does not tell.
    """
    if mapping(recipe).get("_target_") == "specpolicy.samplers.compiled":
        recipe = recipe.get("sampler")
    known = mapping(recipe)
    if known.get("_target_") not in CHAINS:
        return None
    steps = known.get("num_inference_steps")
    if steps is None:
        config = mapping(policy)
        steps = config.get("num_inference_steps") or mapping(config.get("scheduler")).get("num_train_timesteps")
    return TargetDistribution(steps, bool(known.get("analytic", False))) if isinstance(steps, int) else None


LATENCY = "latency.json"


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
        order: samplers of all tasks on the page, which share their colours.
        namesake: whether another folder on the page is of the same task.
    """

    folder: Path
    manifest: Manifest
    records: Sequence[EpisodeResult]
    latency: LatencyRun | None
    reference: str | None
    rows: Sequence[SummaryRow]
    problems: Sequence[str] = ()
    order: Sequence[str] = ()
    namesake: bool = False

    @property
    def heading(self) -> str:
        """Name the task, and its folder if there are several of that task."""
        folder = self.folder.resolve().name
        return f"{self.task} ({folder})" if self.namesake and folder != self.task else self.task

    @property
    def task(self) -> str:
        """Name the task; by its folder where the manifest does not say."""
        return str(self.manifest.configuration.get("task", self.folder.resolve().name))

    @cached_property
    def styles(self) -> dict[str, SamplerStyle]:
        """Choose colour and marker of each sampler."""
        return styles_of(self.rows, self.order)

    @cached_property
    def targets(self) -> dict[str, TargetDistribution | None]:
        """Look up what each exact sampler samples, as far as its recipe tells."""
        recipes = {name: entry.get("recipe") for name, entry in self.manifest.samplers.items()}
        policy = self.manifest.configuration.get("policy")
        known = {
            row.sampler: target_distribution_of(recipes.get(row.sampler), policy) if row.exact else None
            for row in self.rows
        }
        precision = {row.sampler: row.precision for row in self.rows}
        return {name: target and replace(target, precision=precision[name]) for name, target in known.items()}

    def row(self, sampler: str | None) -> SummaryRow | None:
        """Look up the row of a sampler; None if it did not take part."""
        return next((row for row in self.rows if row.sampler == sampler), None)

    def marked(self, sampler: str) -> str:
        """Name the sampler, with a mark if it is approximate or its network was a reduced one."""
        row = self.row(sampler)
        if row and row.precision:
            return f"{sampler} ({distribution_text(row.exact, row.precision)})"
        exact = row.exact if row else self.manifest.samplers.get(sampler, {}).get("exact")
        return f"{sampler} (approximate)" if exact is False else sampler

    def same_distribution(self, row: SummaryRow) -> bool:
        """Tell whether this sampler is known to have the reference's distribution."""
        target = self.targets.get(row.sampler)
        return row.sampler == self.reference or (
            target is not None and target == self.targets.get(self.reference or "")
        )


def read_folder(folder: str | Path, reference: str | None = None) -> tuple[list[TaskResults], dict[Path, str]]:
    """Read a results folder, or a folder of them.

    Args:
        folder: as written by ``specpolicy rollout``, or with one such folder for each task.
        reference: the sampler to compare with; by default ``ddpm``, without it the exact sampler with most NFE.

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
    order = list(dict.fromkeys(row.sampler for results in read for row in results.rows))
    tasks = Counter(results.task for results in read)
    return [replace(results, order=order, namesake=tasks[results.task] > 1) for results in read], failed


def read_task(folder: Path, reference: str | None = None) -> TaskResults:
    """Read one results folder; see :func:`read_folder`.

    Args:
        folder: the results folder.
        reference: the sampler to compare with, or None.

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
    margin, anytime = manifest.analysis.get("margin"), manifest.analysis.get("anytime") is True
    margin = margin if isinstance(margin, float) and 0 < margin < 1 else MARGIN
    precision = {name: manifest_precision(entry) for name, entry in manifest.samplers.items()}
    rows = summarize(records, latency, exact, chosen or REFERENCE, margin, anytime, precision)
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
    exact = [row for row in rows if row.exact and row.nfe is not None]
    return max(exact, key=lambda row: row.nfe or 0.0).sampler if exact else None


_MAX_CRASHES = 30


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of a task come from.

    Attributes:
        facts: name and value.
        runs: one line for each run that added to the results, the latest first.
        command: what the latest run was started with; empty if it is not known.
        crashes: sampler, seed, repeat and error.
        more_crashes: how many are not listed.
        machine: in words, that of the latency if it was measured; empty if nothing is known.
    """

    facts: Sequence[tuple[str, str]]
    runs: Sequence[str]
    command: str
    crashes: Sequence[EpisodeResult]
    more_crashes: int
    machine: str


def provenance_of(results: TaskResults) -> Provenance:
    """Collect what is known of the origin of a task's results.

    Args:
        results: of the task.
    """
    runs = results.manifest.provenance[::-1]
    crashes = [record for record in results.records if record.crashed]
    sources = [results.latency.provenance if results.latency else {}, *runs]
    return Provenance(
        facts=list(_facts(results)),
        runs=[_run(run) for run in runs],
        command=_command(runs[0]) if runs else "",
        crashes=crashes[:_MAX_CRASHES],
        more_crashes=max(len(crashes) - _MAX_CRASHES, 0),
        machine=next(filter(None, (_machine(mapping(source.get("machine"))) for source in sources)), ""),
    )


def _facts(results: TaskResults) -> Iterator[tuple[str, str]]:
    configuration, latency = results.manifest.configuration, results.latency
    environment = dict(mapping(configuration.get("environment")))
    name = str(environment.pop("id", ""))
    if name:
        yield "Environment", " ".join([name, *(f"{key}={value}" for key, value in environment.items())])
    policy = mapping(configuration.get("policy"))
    if policy:
        kind = mapping(policy.get("network")).get("name", "")
        horizons = f"{policy.get('horizon')} actions predicted, {policy.get('n_action_steps')} executed"
        yield "Policy", ", ".join(filter(None, [str(kind), horizons]))
    if configuration.get("checkpoint"):
        yield "Checkpoint, SHA-256", str(configuration["checkpoint"])
    if results.records:
        seeds = [record.seed for record in results.records]
        most = 1 + max(record.repeat for record in results.records)
        upto = "up to " if any(row.episodes != most * len(set(seeds)) for row in results.rows) else ""
        yield (
            "Seeds",
            f"{number_ranges(seeds)} ({counted(len(set(seeds)), 'seed')}, {upto}{counted(most, 'episode')} each)",
        )
        crashed = sum(record.crashed for record in results.records)
        yield "Episodes", f"{len(results.records)}, {crashed} crashed"
    if latency is not None:
        calls = number_ranges([len(log.nanoseconds) for log in latency.samplers.values()])
        yield (
            "Latency",
            (
                f"{calls} calls of each sampler after {latency.warmup} that do not count, in turn, batch size 1, on "
                f"{latency.observations} recorded observations; {latency.device}, {counted(latency.threads, 'thread')}"
            ),
        )
        yield "Latency measured on", _machine(mapping(latency.provenance.get("machine"))) or "not recorded"
    latest = results.manifest.provenance[-1] if results.manifest.provenance else {}
    packages, python = mapping(latest.get("packages")), latest.get("python")
    versions = [*([f"python {python}"] if python else []), *(f"{name} {version}" for name, version in packages.items())]
    if versions:
        yield "Versions", ", ".join(versions)
    yield "Results folder", str(results.folder)


def _run(run: Mapping[str, Any]) -> str:
    git = mapping(run.get("git"))
    revision = f"revision {str(git['revision'])[:12]}" if git.get("revision") else "no git revision"
    changed = " with uncommitted changes" if git.get("dirty") else ""
    seeds = run.get("seeds")
    number = counted(len(seeds), "seed") if isinstance(seeds, list) else ""
    machine = _machine(mapping(run.get("machine")))
    return ", ".join(filter(None, [str(run.get("time_utc", "")), revision + changed, number, machine]))


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
