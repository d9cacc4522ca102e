"""From a results folder's episodes to what is shown of them: latency, table, plot, video."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from rich.console import Console

from specpolicy.config import is_sealed
from specpolicy.control.executors import Lockstep
from specpolicy.control.latency_log import LatencyRun
from specpolicy.evaluation.latency import measure_latency
from specpolicy.evaluation.results import read_observations, read_results
from specpolicy.evaluation.summary import SummaryRow, summarize
from specpolicy.evaluation.tables import json_table, markdown_table, rich_table
from specpolicy.evaluation.verdicts import MARGIN, checked_margin
from specpolicy.interop.loading import load_policy
from specpolicy.policies.checkpoint import CheckpointError
from specpolicy.policies.protocols import ChunkPolicy, ChunkSampler, network_of, reduced_precision
from specpolicy.rollout.env_worker import EnvPool, MakeEnv, MakeViews, WorkerConfig
from specpolicy.rollout.episodes import Batch, EpisodeKey, EpisodeResult, EpisodeSpec, Unit, episode_keys
from specpolicy.rollout.runner import ObservationRecorder, run_episodes
from specpolicy.utils.digests import checkpoint_digest, noting_inputs
from specpolicy.utils.files import atomic_path
from specpolicy.utils.provenance import collect_provenance

KEPT_OBSERVATIONS = 64


class TaskRunner:
    """Runs units of work of one task. Use it as a context manager: it closes the environments.

    Args:
        policy: predicts action chunks.
        samplers: by name.
        pool: where episodes run.
        crash_limit: see :func:`specpolicy.rollout.runner.run_episodes`.
        threads: torch's threads until it is closed; None leaves them as they are.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        samplers: Mapping[str, ChunkSampler],
        pool: EnvPool,
        crash_limit: int | None = 20,
        threads: int | None = None,
    ) -> None:
        self._recorder = ObservationRecorder(policy, limit=KEPT_OBSERVATIONS)
        self._samplers, self._pool, self._crash_limit = samplers, pool, crash_limit
        self._executor = Lockstep(policy.config.n_action_steps)
        self._former_threads = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)

    def run(self, units: Iterable[Unit]) -> Iterator[Batch]:
        """Run one unit after the other and hand out each episode as soon as it has ended.

        Args:
            units: of this task.

        Yields:
            Batches of one episode.

        Raises:
            EvaluationAborted: nothing but crashes came. Batches handed out before remain valid.
        """
        for unit in units:
            specs = [EpisodeSpec(key, unit.sampler, self._executor) for key in unit.keys]
            for result in run_episodes(
                self._recorder, self._samplers, self._pool, specs, task=unit.task, crash_limit=self._crash_limit
            ):
                yield Batch(unit.task, (replace(result, trace=None),), self._recorder.observations)

    def close(self) -> None:
        """Close the environments and give the threads back."""
        self._pool.close()
        torch.set_num_threads(self._former_threads)

    def __enter__(self) -> TaskRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PolicyAndSamplers(NamedTuple):
    """A policy, and the samplers that are compared on it, by name.

    Attributes:
        policy: as loaded.
        samplers: made for it.
        fitted: for each sampler the SHA-256 of what it was made from besides the checkpoint, by file.
    """

    policy: ChunkPolicy
    samplers: Mapping[str, ChunkSampler]
    fitted: Mapping[str, Mapping[str, str]] = {}

    def recipe(self, name: str, configured: Any) -> dict[str, Any]:
        """Describe a sampler for a manifest: a folder refuses to go on with another calibration, too.

        Args:
            name: of the sampler.
            configured: its configuration, as plain data.
        """
        fitted, sampler = self.fitted.get(name), self.samplers[name]
        network = network_of(sampler)
        return {
            "exact": bool(sampler.exact),
            **({"network": network} if network else {}),
            "recipe": configured,
            **({"fitted": dict(fitted)} if fitted else {}),
        }


@dataclass(frozen=True)
class CheckpointLoader:
    """Loads a checkpoint and makes samplers for it: once a process, however often it is called.

    Pickled, it leaves behind what it has loaded.

    Attributes:
        checkpoint: folder of the policy.
        task: name of the task that it must have been trained on.
        recipes: for each sampler what makes it for the policy.
        device: where the policy computes.
        digest: what :func:`checkpoint_digest` must say of the folder, wherever it is opened; None for anything.
        fitted: what the samplers must have been made from, likewise.
    """

    checkpoint: str
    task: str
    recipes: Mapping[str, Callable[[Any], ChunkSampler]]
    device: str = "cpu"
    digest: str | None = None
    fitted: Mapping[str, Mapping[str, str]] | None = None
    _loaded: list[PolicyAndSamplers] = field(default_factory=list, init=False, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": []}

    def __call__(self) -> PolicyAndSamplers:
        """Load it, or return what has been loaded in this process.

        Raises:
            CheckpointError: it is missing, damaged, of another task, or not the one that the digest is of.
        """
        if not self._loaded:
            self._loaded.append(self._load())
        return self._loaded[0]

    def _load(self) -> PolicyAndSamplers:
        policy = load_policy(Path(self.checkpoint), self.device, self.task)
        if self.digest is not None and checkpoint_digest(self.checkpoint) != self.digest:
            raise CheckpointError(
                f"{self.checkpoint} is not the checkpoint that this run began with; every machine must see the same "
                "files there, and nobody may change them meanwhile"
            )
        samplers, fitted = dict[str, ChunkSampler](), dict[str, dict[str, str]]()
        for name, make in self.recipes.items():
            with noting_inputs() as fitted[name]:
                samplers[name] = make(policy)
        if self.fitted is not None and fitted != self.fitted:
            changed = next(name for name in fitted if fitted[name] != self.fitted.get(name))
            raise CheckpointError(
                f"what {changed} was fitted with beside {self.checkpoint} is not what this run began with; every "
                "machine must see the same files there, and nobody may change them meanwhile"
            )
        return PolicyAndSamplers(policy, samplers, fitted)

    def pinned(self) -> CheckpointLoader:
        """The same, but only for the checkpoint as it is now, which has shown that it loads. Raises as a call does."""
        loaded = self()
        pinned = replace(self, digest=checkpoint_digest(self.checkpoint), fitted=loaded.fitted)
        pinned._loaded.append(loaded)
        return pinned


@dataclass(frozen=True)
class Comparison:
    """Samplers of one policy on the seeds of one task. It can be pickled, and opened in another process.

    Attributes:
        task: its name.
        contestants: gives the policy and the samplers of ``repeats``.
        make_env: makes an environment.
        seeds: of the initial states.
        repeats: episodes for each seed, by sampler.
        checkpoint: where the policy came from, for the record.
        recipes: configuration of each sampler, for the record; a results folder refuses a sampler whose recipe has
            changed.
        num_envs: environments that share a network pass.
        threads: torch's threads while episodes run; None leaves them as they are. The last bits of a network's output
            depend on them, as they do on ``num_envs``.
        block_size: seeds in a unit of work.
        retry_crashed: run crashed episodes of an earlier run again.
        crash_limit: give up after so many crashes in a row; None: never.
        latency_calls: timed calls of each sampler at batch 1; 0 for none.
        latency_threads: torch's threads meanwhile; None leaves them as they are.
        control_hz: control rate of the environment, for the video's clock.
        video: samplers to film side by side, as far as they take part.
        margin: loss of success that still counts as non-inferior, in (0, 1); fixed in the folder by its first run.
        anytime: judge with tests that hold however often the run is looked at and extended; fixed likewise.
        make_views: makes what watches an episode where it is played, e.g. a recorder.
    """

    task: str
    contestants: Callable[[], PolicyAndSamplers]
    make_env: MakeEnv
    seeds: Sequence[int]
    repeats: Mapping[str, int]
    checkpoint: str
    recipes: Mapping[str, Any] = field(default_factory=dict)
    num_envs: int = 8
    threads: int | None = None
    block_size: int = 100
    retry_crashed: bool = False
    crash_limit: int | None = 20
    latency_calls: int = 40
    latency_threads: int | None = None
    control_hz: float = 20.0
    video: tuple[str, ...] = ()
    margin: float = MARGIN
    anytime: bool = False
    make_views: MakeViews | None = None

    def __post_init__(self) -> None:
        checked_margin(self.margin)

    @property
    def analysis(self) -> dict[str, Any]:
        """How the results are judged, for the manifest."""
        sealed = {is_sealed(seed) for seed in self.seeds}
        if len(sealed) > 1:
            raise ValueError(
                "sealed seeds are compared by themselves: leave out those that are not, or the sealed ones"
            )
        return {
            "margin": self.margin,
            "anytime": self.anytime,
            "seeds": "sealed" if sealed == {True} else "development",
        }

    def open(self) -> TaskRunner:
        """Load the policy and start the environments, here."""
        policy, samplers, _ = self.contestants()
        config = WorkerConfig(self.make_env, policy.config.n_obs_steps, make_views=self.make_views)
        pool = EnvPool(config, self.num_envs)
        return TaskRunner(policy, samplers, pool, self.crash_limit, self.threads)

    def episodes(self) -> set[EpisodeKey]:
        """Which episodes are compared."""
        return {key for name, count in self.repeats.items() for key in episode_keys(name, self.seeds, count)}


_log = logging.getLogger(__name__)
LATENCY = "latency.json"


@dataclass(frozen=True)
class Conclusion:
    """What came of a comparison: its episodes, and a row for each sampler."""

    records: list[EpisodeResult]
    rows: list[SummaryRow]


def write_results(comparison: Comparison, folder: Path) -> Conclusion:
    """Measure latency unless that has been done, then write and print the table and write plot and video.

    Args:
        comparison: what was run.
        folder: its results folder.

    Returns:
        Its episodes and table.
    """
    contestants = comparison.contestants()
    episodes = comparison.episodes()
    records = [record for record in read_results(folder)[0] if record.key in episodes]
    latency = _latency(comparison, contestants, folder)
    exact = {name: bool(sampler.exact) for name, sampler in contestants.samplers.items()}
    precision = {name: reduced_precision(sampler) for name, sampler in contestants.samplers.items()}
    rows = summarize(records, latency, exact, margin=comparison.margin, anytime=comparison.anytime, precision=precision)
    _show(comparison, rows, latency, folder)
    _film(comparison, contestants, rows, folder)
    return Conclusion(records, rows)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Args:
        path: of the file.
        text: its contents.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _latency(comparison: Comparison, contestants: PolicyAndSamplers, folder: Path) -> LatencyRun | None:
    """The measurement in ``folder`` if it has all these samplers, else a new one on observations of these episodes."""
    path, samplers = folder / LATENCY, contestants.samplers
    old = LatencyRun.read(path) if path.exists() else None
    if old is not None:
        logs = {name: log for name, log in old.samplers.items() if name in samplers}
        enough = len(logs) == len(samplers) and all(
            len(log.nanoseconds) >= comparison.latency_calls for log in logs.values()
        )
        if enough or not comparison.latency_calls:
            return replace(old, samplers=logs)
    if not comparison.latency_calls:
        return None
    observations = read_observations(folder)
    if not observations:
        warnings.warn(f"{folder} holds no observations to measure latency on", stacklevel=2)
        return None
    policy = contestants.policy
    run = measure_latency(
        policy,
        samplers,
        observations,
        calls=comparison.latency_calls,
        threads=comparison.latency_threads,
        provenance=collect_provenance(comparison.checkpoint, device=getattr(policy, "device", "cpu")),
    )
    run.write(path)
    return run


def _show(comparison: Comparison, rows: list[SummaryRow], latency: LatencyRun | None, folder: Path) -> None:
    from specpolicy.evaluation.plots import NothingToPlot, plot_summary

    title = f"{comparison.task}, {len(comparison.seeds)} seeds"
    console = Console()
    console.print(rich_table(rows, title))
    write_text(folder / "table.md", markdown_table(rows))
    write_text(folder / "table.json", json_table(rows))
    try:
        plot_summary(rows, folder / "latency_against_success.png", latency, title)
    except NothingToPlot as error:
        _log.info("no plot: %s", error)
    console.print(f"Results in {folder}: table.md, table.json, latency_against_success.png, episodes and provenance.")


def _film(comparison: Comparison, contestants: PolicyAndSamplers, rows: list[SummaryRow], folder: Path) -> None:
    """One episode side by side; each robot stands still for as long as its sampler thinks."""
    policy, samplers, _ = contestants
    cast = {name: samplers[name] for name in comparison.video if name in samplers}
    if not cast:
        return
    from specpolicy.evaluation.video import record_video

    medians = {row.sampler: row.latency.p50.value / 1e3 for row in rows if row.latency and row.latency.p50}
    make_env = comparison.make_env
    clip = record_video(
        policy,
        cast,
        replace(make_env, kwargs={**make_env.kwargs, "render_mode": "rgb_array"}),
        folder / "rollout.mp4",
        seed=comparison.seeds[0],
        pauses={name: medians.get(name) for name in cast},
        control_hz=comparison.control_hz,
    )
    if clip is not None:
        _log.info("video: %s", clip)
