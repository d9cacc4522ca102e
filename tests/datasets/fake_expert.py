"""A cheap environment and an expert for it; also a program, to be killed: ``fake_expert.py FILE WORKERS``.

Each seed that is performed leaves a line in the file that ``log`` names.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from specpolicy.datasets.record import Recorded, RecordingSettings, record_demonstrations


class FakeEnv(gymnasium.Env[Any, Any]):
    pass


def no_env() -> gymnasium.Env[Any, Any]:
    raise FileNotFoundError("the mesh of the peg is missing")


@dataclass(frozen=True)
class FakePerformance:
    states: NDArray[Any]
    observations: dict[str, NDArray[Any]]
    actions: NDArray[Any]
    executed_actions: NDArray[Any]
    taught: NDArray[Any]
    rewards: NDArray[Any]
    dones: NDArray[Any]
    success: bool
    failure: str | None = None


@dataclass(frozen=True)
class FakeExpert:
    """Fails, raises, dies (always, or only once), hangs or dawdles at the given seeds."""

    log: Path
    failing: tuple[int, ...] = ()
    raising: tuple[int, ...] = ()
    dying: tuple[int, ...] = ()
    dying_once: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    pause_s: dict[int, float] = field(default_factory=dict)

    def __call__(self, env: gymnasium.Env[Any, Any], *, seed: int) -> FakePerformance:
        died = self.log.exists() and f"{seed}\n" in self.log.read_text()
        with open(self.log, "a") as log:
            log.write(f"{seed}\n")
        time.sleep(1e6 if seed in self.hanging else self.pause_s.get(seed, 0.0))
        if seed in self.dying or (seed in self.dying_once and not died):
            os._exit(7)
        if seed in self.raising:
            raise ZeroDivisionError("no way")
        rng, steps = np.random.default_rng(seed), 20 + seed
        return FakePerformance(
            states=rng.normal(size=(steps, 5)),
            observations={"object": rng.normal(size=(steps, 3)), "image": np.full((steps, 4, 4, 3), seed, np.uint8)},
            actions=rng.uniform(-1, 1, (steps, 2)),
            executed_actions=rng.uniform(-1, 1, (steps, 2)),
            taught=np.arange(steps) % 5 > 0,
            rewards=np.ones(steps),
            dones=np.ones(steps),
            success=seed not in self.failing,
            failure="let go of it" if seed in self.failing else None,
        )

    def performed(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


def record(path: Path, expert: FakeExpert, episodes: int = 6, workers: int = 0, **options: Any) -> Recorded:
    seen = {name: options.pop(name) for name in ("seed", "next_obs", "valid_every") if name in options}
    settings = RecordingSettings(episodes, **seen)
    return record_demonstrations(
        path, FakeEnv, expert, options.pop("source", {"noise": 0.1}), settings, workers, **options
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever started the tests ignores it
    file, workers = Path(sys.argv[1]), int(sys.argv[2])
    dawdling = partial(FakeExpert, pause_s=dict.fromkeys(range(100), 0.2), failing=(1, 4))
    record(file, dawdling(file.with_suffix(".log")), workers=workers)
