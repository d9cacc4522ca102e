"""A policy's node and a simulator as two processes over the loopback interface, beside the loop in one process.

    python benchmarks/bench_ros.py square --seeds 100000 100001 100002 --out benchmarks/results/ros/square.json

In lockstep the world waits for actions, and both must play the same actions, bit by bit; with faults put into topics
the node has to come through. Writes as it goes; runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from hydra.utils import instantiate

from specpolicy.config import compose
from specpolicy.control import ControlLoop, PolicyRunner, SimulatedLatencyClock
from specpolicy.control.latency import Constant
from specpolicy.control.trace import read_trace
from specpolicy.interop.loading import load_policy
from specpolicy.ros.interface import load_interface
from specpolicy.utils.files import atomic_path
from specpolicy.utils.provenance import software_and_machine

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Setting:
    """One way to play: executor, latency in lockstep, faults of topics."""

    name: str
    executor: str
    latency_ms: float = 0.0
    faults: tuple[dict[str, Any], ...] = ()
    lockstep: bool = True


def settings_of(task: str) -> list[Setting]:
    topics = [sensor.topic for sensor in load_interface(task).observations.values()]
    muted = {"topic": topics[0], "kind": "mute", "first": 30, "ticks": 3}
    late = {"topic": topics[-1], "kind": "delay", "first": 20, "ticks": 40, "delay_ticks": 2}
    return [
        Setting("lockstep", "lockstep"),
        Setting("asynchronous, 100 ms", "asynchronous", 100.0),
        Setting("asynchronous, 100 ms, one topic silent for 3 ticks", "asynchronous", 100.0, (muted,)),
        Setting("asynchronous, 100 ms, one topic 2 ticks late for 40 ticks", "asynchronous", 100.0, (late,)),
    ]


def over_topics(task: str, rate: float, sampler: str, setting: Setting, seeds: list[int]) -> list[dict[str, Any]]:
    """The episodes of two processes, with their actions and faults."""
    environment = {**os.environ, "ROS_LOCALHOST_ONLY": "1", "ROS_DOMAIN_ID": str(1 + os.getpid() % 100)}
    with tempfile.TemporaryDirectory() as folder:
        node = subprocess.Popen(
            [
                sys.executable, "-m", "specpolicy.cli", "ros", f"checkpoints/{task}", f"config={task}",
                f"executor={setting.executor}", f"sampler={sampler}", f"rate_hz={rate}", f"out={folder}",
                f"latency_ms={setting.latency_ms}", "autostart=false", "lockstep=true", "reliable=true",
            ],
            cwd=ROOT, env=environment,
        )  # fmt: skip
        actions = Path(folder) / "actions.npz"
        faults = [part for fault in setting.faults for part in ("--fault", json.dumps(fault))]
        try:
            begun = time.perf_counter()
            done = subprocess.run(
                [
                    sys.executable, "examples/simulate_over_ros.py", task, "--lockstep", "--rate", str(rate),
                    "--seeds", *map(str, seeds), "--out", str(actions), *faults,
                ],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            seconds = time.perf_counter() - begun
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(60)
        episodes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        traces = [read_trace(path) for path in sorted(Path(folder).glob("activation-*.parquet"))]
        with np.load(actions) as read:
            return [
                {
                    **episode,
                    "actions": read[str(episode["seed"])],
                    "faults": dict(trace.faults),
                    "seconds": seconds / len(seeds),
                }
                for episode, trace in zip(episodes, traces, strict=True)
            ]


def in_one_process(task: str, rate: float, sampler: str, setting: Setting, seed: int) -> dict[str, Any]:
    policy = load_policy(ROOT / "checkpoints" / task)
    chosen = [f"task={task}", f"sampler={sampler}", f"executor={setting.executor}"]
    cfg = compose("control", [*chosen, f"n_action_steps={policy.config.n_action_steps}"])
    env = gymnasium.make(cfg.task.env)
    loop = ControlLoop(
        env,
        PolicyRunner(policy, instantiate(cfg.sampler)(policy)),
        instantiate(cfg.executor),
        SimulatedLatencyClock(rate, Constant(1e-3 * setting.latency_ms)),
        instantiate(cfg.guards),
        load_interface(task).spec,
    )
    trace = loop.run(seed)
    env.close()
    return {"success": trace.success, "actions": np.array([row.action for row in trace.ticks])}


def compared(there: dict[str, Any], here: dict[str, Any] | None) -> dict[str, Any]:
    """A row of the results: both outcomes, and how far apart the actions are."""
    row = {name: there[name] for name in ("seed", "success", "return_", "faults")}
    row |= {"ticks": len(there["actions"]), "seconds": round(there["seconds"], 1)}
    if here is not None:
        same = there["actions"].shape == here["actions"].shape
        row |= {
            "success_in_one_process": here["success"],
            "equal": bool(same and np.array_equal(there["actions"], here["actions"])),
            "largest_difference": float(np.abs(there["actions"] - here["actions"]).max()) if same else None,
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", default="square")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100000, 100001, 100002])
    parser.add_argument("--sampler", default="recycled")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the settings to run; all by default")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rate = float(compose("rollout", [f"task={options.task}"]).task.control_hz)
    results: dict[str, Any] = {"task": options.task, "sampler": options.sampler, "rate_hz": rate, "settings": {}}
    if options.out.is_file():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    for number, setting in enumerate(settings_of(options.task)):
        rows = results["settings"].setdefault(setting.name, [])
        left = [seed for seed in options.seeds if seed not in {row["seed"] for row in rows}]
        if not left or (options.only is not None and number not in options.only):
            continue
        for there in over_topics(options.task, rate, options.sampler, setting, left):
            here = None
            if not setting.faults:
                here = in_one_process(options.task, rate, options.sampler, setting, there["seed"])
            rows.append(compared(there, here))
            print(setting.name, json.dumps(rows[-1]), file=sys.stderr, flush=True)
        results |= software_and_machine()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
