"""Recording demonstrations: the first so many successes, in the order of their seeds."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium

from specpolicy.datasets.expert import Attempt, ExpertPolicy, ExpertWorker
from specpolicy.datasets.robomimic import (
    Attribute,
    DemonstrationError,
    Episode,
    read_attributes,
    read_episodes,
    write_demonstrations,
)
from specpolicy.rollout.workers import make_workers, run_requests
from specpolicy.utils.digests import file_digest
from specpolicy.utils.files import DAMAGED, FolderLock, atomic_path, differences
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import package_versions

IDENTITY, _USED = "recording.json", "used"  # used: the result is written, the folder is only to be removed


class RecordingError(RuntimeError):
    """A recording cannot go on: the environment cannot be made, workers die, or nothing succeeds."""


class OtherRecording(ValueError):
    """What is there was recorded with other settings or by other software."""


class RecordingCheckpoint:
    """Hold a work folder, making it if need be. Use it as a context manager.

    ::

        recording.json    settings and software of the recording
        seed-12.hdf5      a success, a demonstration file of its own
        seed-13.json      a failure, and why

    Args:
        folder: where.
        identity: settings and software; all parts must come from the same.
        restart: empty a folder of another identity instead of refusing it.

    Raises:
        OtherRecording: the folder's identity is another one; the message says in what.
        FolderInUse: another process is recording there.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], restart: bool = False) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(folder)
        try:
            self._take_up(restart)
        except BaseException:
            self._lock.release()
            raise

    def attempts(self) -> dict[int, str | None]:
        """Seeds that are done: None after a success, else why it failed."""
        failed = {
            _seed(path): json.loads(path.read_text("utf-8"))["failure"] for path in self.folder.glob("seed-*.json")
        }
        return failed | {_seed(path): None for path in self.folder.glob("seed-*.hdf5")}

    def save(self, attempt: Attempt) -> None:
        """Save an attempt, at once or not at all."""
        if attempt.episode is not None:
            path = self._episode(attempt.seed)
            write_demonstrations(path, [attempt.episode], attempt.env_args, valid_every=0, compression=1)
        else:
            with atomic_path(self.folder / f"seed-{attempt.seed}.json") as path:
                path.write_text(json.dumps({"failure": attempt.failure}), "utf-8")

    def episode(self, seed: int) -> Episode:
        """A saved success."""
        return next(read_episodes(self._episode(seed)))

    def env_args(self, seed: int) -> dict[str, Any]:
        """What robomimic makes the environment of a saved success from."""
        return dict(json.loads(str(read_attributes(self._episode(seed))["env_args"])))

    def remove(self) -> None:
        """Remove the folder, now that its result is written."""
        (self.folder / _USED).touch()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let others record there."""
        self._lock.release()

    def __enter__(self) -> RecordingCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _episode(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.hdf5"

    def _take_up(self, restart: bool) -> None:
        path = self.folder / IDENTITY
        if path.exists():
            lines = differences(json.loads(path.read_text("utf-8")), self.identity)
            if lines and not restart:
                raise OtherRecording(
                    f"{self.folder} holds an unfinished recording of another kind:\n" + "\n".join(lines) + "\n"
                    "Set these as they were to go on with it, choose another out=, or drop it with overwrite=true."
                )
        if not path.exists() or lines:
            for part in self.folder.glob("seed-*"):
                part.unlink()
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.identity, indent=2) + "\n", "utf-8")


def remove_used(folder: Path) -> None:
    """Remove what a kill left of a folder whose result had been written; leave any other alone.

    Args:
        folder: the work folder of a recording.
    """
    if (folder / _USED).exists():
        shutil.rmtree(folder)


def _seed(path: Path) -> int:
    match = re.fullmatch(r"seed-(\d+)", path.stem)
    if match is None:
        raise OtherRecording(f"{path} does not belong into the work folder of a recording; move it away")
    return int(match[1])


class SeedQueue:
    """Looks for the first successful seeds and tries none in vain.

    Args:
        first: the first seed.
        wanted: how many successes.
        done: seeds that were tried before: None after a success, else why it failed.
    """

    def __init__(self, first: int, wanted: int, done: Mapping[int, str | None]) -> None:
        self._first, self._wanted = first, wanted
        self._done = {seed: failure for seed, failure in sorted(done.items()) if seed >= first}

    def note(self, seed: int, failure: str | None) -> None:
        """Take in an attempt."""
        self._done[seed] = failure

    def next(self, under_way: frozenset[int]) -> int | None:
        """The first untried seed; None while those before it may turn out to be enough."""
        seed = next(seed for seed in count(self._first) if seed not in self._done and seed not in under_way)
        promising = sum(self._done.get(earlier) is None for earlier in range(self._first, seed))
        return seed if promising < self._wanted else None

    def successes(self) -> list[int]:
        """The first successful seeds, at most as many as are wanted."""
        return sorted(seed for seed, failure in self._done.items() if failure is None)[: self._wanted]

    def failures(self) -> dict[int, str]:
        """Failed seeds and why; beyond the last wanted success none counts."""
        successes = self.successes()
        until = successes[-1] if len(successes) == self._wanted else float("inf")
        return {seed: why for seed, why in sorted(self._done.items()) if why is not None and seed < until}

    def failed_in_a_row(self) -> dict[int, str]:
        """The failures since the last success."""
        return {seed: why for seed, why in self.failures().items() if seed > max(self.successes(), default=-1)}


@dataclass(frozen=True)
class Recorded:
    """A finished recording.

    Attributes:
        path: the file.
        episodes, steps: in it.
        tried: seeds that were attempted.
        failed: those that failed, and why.
        found: it was there before; nothing was recorded now.
        other_software: how the software that recorded it differs from the present one; only where ``found``.
    """

    path: Path
    episodes: int
    steps: int
    tried: int
    failed: Mapping[int, str]
    found: bool = False
    other_software: tuple[str, ...] = ()

    def summary(self) -> str:
        """What was recorded and what was not, in a few lines."""
        there = "were there already" if self.found else "recorded"
        lines = [f"{self.episodes} demonstrations ({self.steps} steps) {there}: {self.path}"]
        reasons = Counter(self.failed.values()).most_common()
        lines += [f"{len(self.failed)} of {self.tried} seeds failed" + (":" if reasons else "")]
        lines += [f"  {number} x {reason}" for reason, number in reasons[:5]]
        if len(reasons) > 5:
            lines.append(f"  {sum(number for _, number in reasons[5:])} for other reasons; see the file's failed_seeds")
        if self.other_software:
            lines += ["It was recorded by other software; overwrite=true records it afresh:", *self.other_software]
        return "\n".join(lines)


def read_recorded(path: Path, recording: Mapping[str, Any], software: Mapping[str, str]) -> Recorded:
    """The finished recording at ``path``.

    Args:
        path: the file.
        recording: source and settings that it must have been recorded with.
        software: the present software; another one is told, not refused.

    Returns:
        What is in the file.

    Raises:
        OtherRecording: it was recorded with others, or is no recording.
    """
    try:
        attributes = read_attributes(path)
        there = dict(json.loads(str(attributes["recording"])))
    except (DemonstrationError, *DAMAGED):
        raise OtherRecording(
            f"{path} is there and was not recorded from an expert; choose another out=, or overwrite=true to replace it"
        ) from None
    lines = differences(there, recording)
    if lines:
        raise OtherRecording(
            f"{path} was recorded with other settings:\n" + "\n".join(lines) + "\n"
            "Choose another out=, or replace it with overwrite=true."
        )
    return Recorded(
        path,
        episodes=there["settings"]["episodes"],
        steps=int(attributes["total"]),
        tried=int(attributes["tried_seeds"]),
        failed={int(seed): why for seed, why in json.loads(str(attributes["failed_seeds"])).items()},
        found=True,
        other_software=tuple(differences(json.loads(str(attributes["software"])), software)),
    )


def software_of(function: Callable[..., Any]) -> dict[str, str]:
    """Describe the software that a recording depends on.

    Args:
        function: the expert; may be a ``functools.partial``.

    Returns:
        Versions of the simulator's packages, and as ``code`` a digest of the function's package.
    """
    while isinstance(function, partial):
        function = function.func
    module = getattr(function, "__module__", type(function).__module__)
    versions = package_versions(("numpy", "mujoco", "robosuite", "gymnasium"))
    return {"code": _code_digest(module.partition(".")[0]), **versions}


def _code_digest(name: str) -> str:
    """Of the Python files of a package, or of a module's only file; also of a program, whose name says nothing."""
    file = getattr(importlib.import_module(name), "__file__", None)
    if not file:
        return "(no source)"
    path = Path(file)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    lines = [f"{file_digest(each)}  {each.relative_to(path.parent)}\n" for each in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RecordingSettings:
    """What a recording consists of.

    Args:
        episodes: successful episodes to record.
        seed: the first seed; the following ones are tried in order, and those that fail are left out.
        next_obs: record what was seen after each action, too; costs as much space as the observations, and the last
            step of each episode. robomimic wants it only where it learns from transitions.
        model_file: record the scene's XML (some 50 to 100 KB) with each episode; robomimic's play-back wants it.
        valid_every: with 10, every tenth episode is for validation; 0: none.
    """

    episodes: int = 200
    seed: int = 0
    next_obs: bool = False
    model_file: bool = False
    valid_every: int = 10

    def __post_init__(self) -> None:
        for name, least in {"episodes": 1, "seed": 0, "valid_every": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def record_demonstrations(
    path: str | Path,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    perform: ExpertPolicy,
    source: Mapping[str, Any],
    settings: RecordingSettings | None = None,
    workers: int = 2,
    overwrite: bool = False,
    timeout_s: float = 600.0,
    patience: int = 50,
) -> Recorded:
    """Record the first successful seeds into one file of robomimic's layout.

    Its bytes depend on the seeds, the settings and the software alone, not on how many workers there were or how often
    it was interrupted. Finished seeds are kept in ``<path>.parts`` until the file is complete; the same call goes on
    from there.

    Args:
        path: the HDF5 file.
        make_env: makes the environment, in a spawned process; picklable by cloudpickle.
        perform: plays a seed in the unwrapped environment, e.g. ``partial(specpolicy_envs.experts.rollout.perform,
            expert=..., variety=...)``; picklable by cloudpickle.
        source: plain data that tell this environment and expert from others; they are written into the file.
        settings: what to record; None for the defaults.
        workers: processes side by side, with one thread each; 0 plays in this process, for debugging.
        overwrite: replace a file, and drop unfinished work, of other settings.
        timeout_s: a worker that takes longer over one seed is killed, and the seed tried again.
        patience: give up when this many seeds in a row have failed.

    Returns:
        What was recorded, or found.

    Raises:
        OtherRecording: the file, or unfinished work beside it, is of other settings, and ``overwrite`` is False.
        RecordingError: the environment cannot be made, workers die again and again, or seeds keep failing. What has
            succeeded stays in the work folder.
        FolderInUse: another process is recording into this file.
        ValueError: a setting is out of its range.
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    path, settings = Path(path), settings or RecordingSettings()
    recording = json.loads(json.dumps({"source": source, "settings": asdict(settings)}))
    software = software_of(perform)
    folder = path.with_name(f"{path.name}.parts")
    if path.exists() and not overwrite:
        found = read_recorded(path, recording, software)
        remove_used(folder)
        return found
    of_a_seed = {"next_obs": settings.next_obs, "model_file": settings.model_file}
    make_handler = partial(ExpertWorker, make_env, perform, **of_a_seed)
    with RecordingCheckpoint(
        folder, {"source": source, "settings": of_a_seed, "software": software}, overwrite
    ) as parts:
        seeds = SeedQueue(settings.seed, settings.episodes, parts.attempts())
        with (
            closing(attempts(make_handler, seeds.next, workers, timeout_s)) as ended,
            progress_bar("recording", settings.episodes, len(seeds.successes())) as bar,
        ):
            for attempt in ended:
                parts.save(attempt)
                seeds.note(attempt.seed, attempt.failure if attempt.episode is None else None)
                bar.advance(attempt.episode is not None)
                bar.describe(f"recording (at seed {attempt.seed}, {len(seeds.failures())} failed)")
                if len(row := seeds.failed_in_a_row()) >= patience:
                    raise RecordingError(f"{len(row)} seeds in a row failed, at last {max(row)}: {row[max(row)]}")
        recorded = _assemble(path, parts, seeds, recording, software)
        parts.remove()
    return recorded


def attempts(
    make_handler: Callable[[], ExpertWorker],
    next_seed: Callable[[frozenset[int]], int | None],
    workers: int,
    timeout_s: float = 600.0,
    lives: int = 3,
) -> Generator[Attempt, None, None]:
    """Attempt seeds side by side.

    Args:
        make_handler: makes an expert in its environment; pickled by cloudpickle.
        next_seed: given the seeds under way, the one to attempt next; None if there is none for now.
        workers: processes; 0 for none but this one.
        timeout_s: a worker that takes longer over one seed is killed.
        lives: a seed at which this many workers in a row have died ends the recording.

    Yields:
        Attempts in the order in which they end.

    Raises:
        RecordingError: the environment cannot be made, or workers die at the same seed again and again.
    """
    pool = make_workers(make_handler, workers or 1, timeout_s, in_process=not workers)
    try:
        for seed, answer in run_requests(pool, next_seed, lives):
            if isinstance(answer, Attempt):
                yield answer
            elif answer.died:
                raise RecordingError(f"seed {seed}, {lives} times in a row: {answer.error}")
            else:
                raise RecordingError(f"the environment cannot be made: {answer.error}")
    finally:
        for worker in pool:
            worker.close()


def _assemble(
    path: Path, parts: RecordingCheckpoint, seeds: SeedQueue, recording: Mapping[str, Any], software: Mapping[str, str]
) -> Recorded:
    successes, failed = seeds.successes(), seeds.failures()
    tried = len(successes) + len(failed)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink()
    with progress_bar("writing", len(successes)) as bar:

        def episodes() -> Iterator[Episode]:
            for seed in successes:
                yield parts.episode(seed)
                bar.advance()

        attributes: dict[str, Attribute] = {
            "recording": json.dumps(recording),
            "software": json.dumps(software),
            "tried_seeds": tried,
            "failed_seeds": json.dumps(failed),
        }
        valid_every = recording["settings"]["valid_every"]
        write_demonstrations(path, episodes(), parts.env_args(successes[0]), attributes, valid_every)
    return Recorded(path, len(successes), int(read_attributes(path)["total"]), tried, failed)
