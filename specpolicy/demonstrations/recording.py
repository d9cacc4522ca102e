"""Recording demonstrations: the first so many successes, in the order of their seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium

from specpolicy.progress import progress_bar

from .crew import Alone, Crew, RecordingError
from .layout import Attribute, Episode, write_demonstrations
from .parts import Parts, remove_used
from .reading import read_attributes
from .recorded import Recorded, read_recorded
from .seeds import Seeds
from .software import software_of
from .stage import Perform, Stage


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
    perform: Perform,
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
        perform: plays a seed in the unwrapped environment, e.g. ``partial(specpolicy_envs.experts.performance.perform,
            expert=..., variety=...)``; picklable by cloudpickle.
        source: plain data that tell this environment and expert from others; they are written into the file.
        settings: what to record; None for the defaults.
        workers: processes side by side, with one thread each; 0 plays in this process, for debugging.
        overwrite: replace a file, and drop unfinished work, of other settings.
        timeout_s: a worker that takes longer over one seed is killed, and the seed tried again.
        patience: give up when this many seeds in a row have failed.

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
    stage = partial(Stage, make_env, perform, **of_a_seed)
    with Parts(folder, {"source": source, "settings": of_a_seed, "software": software}, overwrite) as parts:
        seeds = Seeds(settings.seed, settings.episodes, parts.attempts())
        with (
            Crew(stage, workers, timeout_s) if workers else Alone(stage) as crew,
            progress_bar("recording", settings.episodes, len(seeds.successes())) as bar,
        ):
            for attempt in crew.attempts(seeds.next):
                parts.save(attempt)
                seeds.note(attempt.seed, attempt.failure if attempt.episode is None else None)
                bar.advance(attempt.episode is not None)
                bar.describe(f"recording (at seed {attempt.seed}, {len(seeds.failures())} failed)")
                if len(row := seeds.failed_in_a_row()) >= patience:
                    raise RecordingError(f"{len(row)} seeds in a row failed, at last {max(row)}: {row[max(row)]}")
        recorded = _assemble(path, parts, seeds, recording, software)
        parts.remove()
    return recorded


def _assemble(
    path: Path, parts: Parts, seeds: Seeds, recording: Mapping[str, Any], software: Mapping[str, str]
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
