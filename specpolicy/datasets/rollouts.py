"""Rollouts as data sets: what a policy saw and did, for robomimic's and LeRobot's readers, and to train on.

The process that plays an episode writes it as a part of its own when it ends, before the episode counts as finished; a
run that was killed goes on and loses none. :meth:`RolloutRecording.assemble` joins the parts.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.control.controller import file_name
from specpolicy.control.mcap_view import McapView
from specpolicy.control.trace import EpisodeTrace
from specpolicy.datasets.expert import environment_arguments
from specpolicy.datasets.lerobot_writer import write_lerobot_dataset
from specpolicy.datasets.robomimic import (
    DemonstrationError,
    Episode,
    EpisodeError,
    read_attributes,
    read_episodes,
    write_demonstrations,
)
from specpolicy.rollout.episodes import EpisodeKey
from specpolicy.utils.progress import progress_bar

HDF5 = (".hdf5", ".h5")
_OURS = "rollouts.json"
"""In the work folder: what is beside it was made from these parts and may be made again."""


class RolloutRecorder:
    """Records an episode as it is watched (:class:`specpolicy.control.viewers.View`) and writes it when it ends.

    The rows are ticks: the observation before the action, the action that was sent (environment units), reward and
    whether the episode ended. Episodes that crash are not written.

    Args:
        path: the part, a demonstration file of one episode.
        key: which episode; it becomes the episode's attributes ``sampler``, ``seed`` and ``repeat``.
    """

    def __init__(self, path: Path, key: EpisodeKey) -> None:
        self._path, self._key = path, key
        self._observations: list[dict[str, NDArray[Any]]] = []
        self._env_args: dict[str, Any] = {}

    def begin(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """Keep the first observation."""
        self._env_args = environment_arguments(env.unwrapped)
        self._observations = [dict(trace.observation)]

    def tick(self, trace: EpisodeTrace, env: gymnasium.Env[Any, Any]) -> None:
        """Keep what the action led to."""
        self._observations.append(dict(trace.observation))

    def end(self, trace: EpisodeTrace) -> None:
        """Write the episode; what cannot be one, since a sensor gave NaN, is left out with a warning."""
        count = len(trace.ticks)
        if not count:
            return
        try:
            episode = Episode(
                actions=np.array([row.action for row in trace.ticks], dtype=np.float32),
                observations={
                    name: _single(np.stack([step[name] for step in self._observations[:count]]))
                    for name in self._observations[0]
                },
                others={
                    "rewards": np.array([row.reward for row in trace.ticks], dtype=np.float32),
                    "dones": (np.arange(count) == count - 1).astype(np.int64),
                },
                attributes={
                    "sampler": self._key.sampler, "seed": self._key.seed, "repeat": self._key.repeat,
                    "success": trace.success,
                },
            )  # fmt: skip
        except (EpisodeError, KeyError, ValueError) as error:
            warnings.warn(f"seed {self._key.seed}, {self._key.sampler}: not recorded: {error}", stacklevel=2)
            return
        write_demonstrations(self._path, [episode], self._env_args, valid_every=0, compression=1)


@dataclass(frozen=True)
class RolloutRecording:
    """Where rollouts are recorded, and as what. Called with an episode's key it makes the episode's recorder.

    Attributes:
        path: a file that ends in ``.hdf5`` or ``.h5`` for robomimic's layout, else the folder of a LeRobotDataset v3.
            With several samplers their names are put into it.
        samplers: of the run; each gets a data set of its own, since a policy should learn from one.
        task: its name; LeRobot's description of what is done.
        rate_hz: ticks a second.

    Raises:
        FileExistsError: there is something at ``path`` that was not made from such a recording.
    """

    path: Path
    samplers: tuple[str, ...]
    task: str
    rate_hz: float

    def __post_init__(self) -> None:
        for sampler in self.samplers:
            target = self.target(sampler)
            if target.exists() and not (self.parts / _OURS).is_file():
                raise FileExistsError(
                    f"{target} is there and was not recorded by a rollout; choose another record=, or move it away"
                )

    @property
    def parts(self) -> Path:
        """The folder of the episodes that have ended; it can be removed once no seeds are to be added."""
        return self.path.with_name(f"{self.path.name}.parts")

    def target(self, sampler: str) -> Path:
        """The data set of a sampler."""
        if len(self.samplers) == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{file_name(sampler)}{self.path.suffix}")

    def part(self, key: EpisodeKey) -> Path:
        """The file of an episode."""
        return self.parts / f"{file_name(key.sampler)}-{key.seed}-{key.repeat}.hdf5"

    def __call__(self, key: EpisodeKey) -> list[RolloutRecorder]:
        """Make what records an episode."""
        self.parts.mkdir(parents=True, exist_ok=True)
        return [RolloutRecorder(self.part(key), key)]

    def assemble(self, keys: Iterable[EpisodeKey]) -> list[Path]:
        """Join parts into the data sets.

        Args:
            keys: episodes that were wanted, in order. Those without a part are named in a warning: they crashed, or
                were played before anything was recorded.

        Returns:
            The data sets that were written.

        Raises:
            DemonstrationError: a part is damaged.
            EpisodeError: an episode has other arrays than the first.
        """
        wanted = list(keys)
        written = []
        for sampler in self.samplers:
            mine = [key for key in wanted if key.sampler == sampler]
            there = [self.part(key) for key in mine if self.part(key).is_file()]
            if len(there) < len(mine):
                warnings.warn(
                    f"{len(mine) - len(there)} of {len(mine)} episodes of {sampler} are not in the recording: they "
                    "crashed, or were played by an earlier run that did not record; take a new out= to play them again",
                    stacklevel=2,
                )
            if there:
                (self.parts / _OURS).write_text(json.dumps({"samplers": self.samplers}) + "\n", encoding="utf-8")
                written.append(self._write(self.target(sampler), there))
        return written

    def _write(self, target: Path, parts: Sequence[Path]) -> Path:
        with progress_bar(f"writing {target.name}", len(parts)) as bar:

            def episodes() -> Iterator[Episode]:
                for part in parts:
                    yield _only(part)
                    bar.advance()

            if target.suffix in HDF5:
                env_args = json.loads(str(read_attributes(parts[0])["env_args"]))
                write_demonstrations(target, episodes(), env_args, {"recorded": "rollouts"}, 0, masks_of=_masks)
            else:
                shutil.rmtree(target, ignore_errors=True)
                write_lerobot_dataset(target, episodes(), self.rate_hz, self.task)
        return target


@dataclass(frozen=True)
class McapRecording:
    """Makes the :class:`~specpolicy.control.mcap_view.McapView` of an episode, wherever it is played.

    Attributes:
        path: names the files, with sampler, seed and repeat.
    """

    path: Path

    def __call__(self, key: EpisodeKey) -> list[McapView]:
        """Make what records an episode."""
        return [McapView(self.path.with_name(f"{self.path.stem}-{file_name(key.sampler)}.mcap"))]


def _masks(episode: Episode) -> list[str]:
    """Filter keys: to learn from successes alone, ``filter_key=successful``."""
    return ["successful" if episode.attributes.get("success") else "failed"]


def _only(part: Path) -> Episode:
    for episode in read_episodes(part):
        return episode
    raise DemonstrationError(f"{part} holds no episode; remove it, and play the episode again")


def _single(values: NDArray[Any]) -> NDArray[Any]:
    """Policies learn in single precision."""
    return values.astype(np.float32) if values.dtype == np.float64 else values
