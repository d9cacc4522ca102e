"""What do robots wait for with whole batches, and with continuous batching?

    python benchmarks/bench_batching.py            # Tool Hang and Square, three samplers, 1, 4 and 16 robots

Robots ask at random phases, play the actions of a chunk at 20 Hz, and ask again; what they see is drawn from the middle
of what the policy was trained on. The server's two ways of batching run
in turn, chunk for chunk with the same observations and random streams. Time is the engine thread's processor time, with
idle time skipped: the clock of a machine that does nothing else, also where it does. Threads that serve requests are
counted in. Networks and samplers are real; sockets are left out.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import specpolicy
from specpolicy.control.inference import EpisodeState, InferenceKind, InferenceRequest
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.serving.batching import BatchedPolicy, Job
from specpolicy.serving.continuous import ContinuousBatch
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

RESULT = Path(__file__).parent / "results" / "serving" / "batching.json"
TASKS, SAMPLERS, ROBOTS = ("tool_hang", "square"), ("recycled20", "ddim10", "ddpm"), (1, 4, 16)
PERIOD_S = 0.05
MAX_BATCH, MAX_WAIT_S = 16, 0.002
MODES = ("batches", "continuous")


@dataclass
class Fleet:
    """Robots in simulated time: who asks when, and what each has waited for."""

    policy: DiffusionPolicy
    robots: int
    chunks: int
    seed: int
    now: float = 0.0
    asks: list[tuple[float, int]] = field(default_factory=list)
    asked: dict[int, float] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    queued_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        numbers = np.random.default_rng(self.seed)
        self.play_s = PERIOD_S * self.policy.config.n_action_steps
        self.asks = [(float(at), robot) for robot, at in enumerate(numbers.uniform(0, self.play_s, self.robots))]
        heapq.heapify(self.asks)
        self.left = self.chunks
        self.states = [EpisodeState.start(robot, self.seed) for robot in range(self.robots)]
        spec, normalizer = self.policy.observations, self.policy.observation_normalizer
        drawn = torch.from_numpy(numbers.uniform(-0.5, 0.5, (self.robots, 1, spec.dim))).float()
        parts = torch.split(
            normalizer.unnormalize(drawn).expand(-1, spec.horizon, -1), list(spec.keys.values()), dim=-1
        )
        self.windows = [
            {name: part[robot].numpy() for name, part in zip(spec.keys, parts, strict=True)}
            for robot in range(self.robots)
        ]

    def arrived(self, until: float) -> Iterator[int]:
        """Robots that have asked by then."""
        while self.asks and self.asks[0][0] <= until and self.left:
            at, robot = heapq.heappop(self.asks)
            self.asked[robot], self.left = at, self.left - 1
            yield robot

    def job(self, robot: int) -> Job:
        return self.states[robot], InferenceRequest(InferenceKind.WHOLE, self.windows[robot])

    def begin(self, robot: int) -> None:
        self.begun[robot] = self.now

    def answer(self, robot: int, error: str | None) -> None:
        if error is not None:
            raise RuntimeError(error)
        asked = self.asked.pop(robot)
        self.queued_ms.append(1e3 * (self.begun.pop(robot) - asked))
        self.total_ms.append(1e3 * (self.now - asked))
        heapq.heappush(self.asks, (self.now + self.play_s, robot))

    def charge(self, work: Any) -> Any:
        """Run, and let the clock go on by the processor time that it took."""
        begun = time.process_time()
        found = work()
        self.now += time.process_time() - begun
        return found


def in_batches(engine: BatchedPolicy, fleet: Fleet) -> None:
    """As the server's queue: who came while a batch ran forms the next; alone, one waits a little for others."""
    waiting: list[int] = []
    while fleet.left or waiting:
        waiting += fleet.arrived(fleet.now)
        if not waiting:
            fleet.now = fleet.asks[0][0]
            continue
        latest = fleet.asked[waiting[0]] + MAX_WAIT_S
        if len(waiting) < min(MAX_BATCH, fleet.robots) and fleet.now < latest:
            fleet.now = min(latest, fleet.asks[0][0] if fleet.asks and fleet.left else latest)
            continue
        batch, waiting = waiting[:MAX_BATCH], waiting[MAX_BATCH:]
        for robot in batch:
            fleet.begin(robot)
        results = fleet.charge(lambda batch=batch: engine.run([fleet.job(robot) for robot in batch]))
        for robot, result in zip(batch, results, strict=True):
            fleet.answer(robot, result.error)


def continuously(engine: BatchedPolicy, fleet: Fleet) -> None:
    """As the server with continuous=true."""
    rounds, waiting = ContinuousBatch(engine), list[int]()
    while fleet.left or waiting or len(rounds):
        waiting += fleet.arrived(fleet.now)
        while waiting and len(rounds) < MAX_BATCH:
            robot = waiting.pop(0)
            fleet.begin(robot)
            rounds.join(robot, fleet.job(robot))
        if not len(rounds):
            fleet.now = fleet.asks[0][0]
            continue
        for robot, result in fleet.charge(rounds.advance):
            fleet.answer(robot, result.error)


def summary(fleets: list[Fleet]) -> dict[str, Any]:
    queued, total = (np.concatenate([getattr(each, name) for each in fleets]) for name in ("queued_ms", "total_ms"))
    rates = [len(each.total_ms) / each.now for each in fleets]
    return {
        "n": len(total),
        "queued_ms": {f"p{q}": round(float(np.percentile(queued, q)), 1) for q in (50, 95)},
        "answered_ms": {f"p{q}": round(float(np.percentile(total, q)), 1) for q in (50, 95)},
        "chunks_per_s": round(float(np.mean(rates)), 2),
    }


def ratios(fleets: dict[str, list[Fleet]]) -> dict[str, Any]:
    """Continuous to batches, paired by run; bootstrap over runs."""
    numbers = np.random.default_rng(0)

    def of(quantity: Any) -> dict[str, float]:
        pairs = np.array([[quantity(fleet) for fleet in fleets[mode]] for mode in MODES])
        drawn = numbers.integers(0, pairs.shape[1], (2000, pairs.shape[1]))
        spread = pairs[1][drawn].mean(1) / pairs[0][drawn].mean(1)
        low, high = np.percentile(spread, [2.5, 97.5])
        return {
            "ratio": round(float(pairs[1].mean() / pairs[0].mean()), 3),
            "low": round(float(low), 3),
            "high": round(float(high), 3),
        }

    return {
        "answered_p50": of(lambda fleet: np.percentile(fleet.total_ms, 50)),
        "answered_p95": of(lambda fleet: np.percentile(fleet.total_ms, 95)),
        "chunks_per_s": of(lambda fleet: len(fleet.total_ms) / fleet.now),
    }


def measure(task: str, name: str, robots: int, runs: int, chunks: int) -> dict[str, Any]:
    policy = specpolicy.load_policy(Path(__file__).parents[1] / "checkpoints" / task)
    engine = BatchedPolicy(policy, specpolicy.samplers.load(name, policy))
    engine.warm_up([1, robots])
    fleets: dict[str, list[Fleet]] = {mode: [] for mode in MODES}
    for run in range(runs):
        for mode, play in (("batches", in_batches), ("continuous", continuously))[:: 1 if run % 2 else -1]:
            fleet = Fleet(policy, robots, chunks, seed=run)
            play(engine, fleet)
            fleets[mode].append(fleet)
    found = {mode: summary(each) for mode, each in fleets.items()}
    return {
        "task": task,
        "sampler": name,
        "robots": robots,
        "runs": runs,
        **found,
        "continuous_to_batches": ratios(fleets),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--robots", nargs="+", type=int, default=ROBOTS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=4, help="of each robot in each run")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells = [(task, name, n) for name in options.samplers for task in options.tasks for n in options.robots]
    found: list[dict[str, Any]] = []
    if options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))["cells"]  # an earlier run's stay
    known = {(each["task"], each["sampler"], each["robots"]) for each in found}
    cells = [cell for cell in cells if cell not in known]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar("fleets", len(cells)) as bar:
        for task, name, robots in cells:
            found.append(measure(task, name, robots, options.runs, options.chunks * robots))
            results = {
                "question": "what do robots wait for with whole batches, and with continuous batching?",
                "completed": (task, name, robots) == cells[-1],
                "clock": "processor time of one engine thread, idle time skipped; sockets left out",
                "threads": 1,
                "max_batch": MAX_BATCH,
                "play_hz": 1 / PERIOD_S,
                "cells": found,
                "provenance": collect_provenance(),
            }
            with atomic_path(options.out) as path:
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(json.dumps(found[-1]), flush=True)
            bar.advance()
    return 0


if __name__ == "__main__":
    sys.exit(main())
