"""Does a policy server grow, err or slow down over many requests?

    python benchmarks/soak_server.py --requests 100000 --clients 8

A server process with a network that costs next to nothing, so that the server is what is measured, and clients in
threads of this process. Every answer is checked against its question; now and then a client leaves and another comes.
Memory of both processes is noted once a second; results are written as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.serving.client import Client, Reply
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import PACKAGES, collect_provenance

RESULT = Path(__file__).parent / "results" / "serving" / "soak.json"
SAMPLER = "ddim2"
SESSION = 1000  # requests after which a client leaves
WRITE_S = 10.0
EVERY = 10  # of so many answers the time of one is kept
MIB = 2**20


def cheap_policy() -> DiffusionPolicy:
    """An untrained MLP of 16 features: 2 observation steps of 4 numbers in, 4 actions of 3 numbers out."""
    torch.manual_seed(0)
    config = PolicyConfig(
        task="soak",
        observations={"pose": 3, "grip": 1},
        action_dim=3,
        horizon=6,
        n_action_steps=4,
        network={"name": "mlp", "width": 16, "blocks": 1, "embed": 16, "timestep_dim": 8},
        scheduler={"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"},
    )
    return DiffusionPolicy(config).eval()


@dataclass
class Tally:
    """What the clients have seen so far."""

    wanted: int
    begun: int = 0
    done: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    batches: Counter[int] = field(default_factory=Counter)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # in place from the start: what the bookkeeping takes must not look like growth
        self.round_trips_ms, self.server_ms = np.full((2, self.wanted // EVERY + 1), np.nan)

    def add(self, reply: Reply) -> None:
        """Note an answer."""
        with self.lock:
            self.done += 1
            self.batches[reply.batch] += 1
            if self.done % EVERY == 0:
                self.round_trips_ms[self.samples] = reply.timing.round_trip_ms
                self.server_ms[self.samples] = reply.timing.server_ms
                self.samples += 1

    def next(self) -> bool:
        """Take the next request, if there is one left."""
        with self.lock:
            if self.stopped or self.begun >= self.wanted:
                return False
            self.begun += 1
            return True


def robot(url: str, number: int, tally: Tally) -> None:
    """Ask until there is nothing left to ask. The same seed must lead to the same first answer in every session."""
    observation = {"pose": np.full(3, 0.1 * number, np.float32), "grip": np.zeros(1, np.float32)}
    first: np.ndarray[Any, Any] | None = None
    while not tally.stopped and tally.begun < tally.wanted:
        with Client(url, timeout_s=60) as client:
            client.reset(seed=number)
            for turn in range(SESSION):
                if not tally.next():
                    return
                try:
                    reply = client.infer(observation)
                    if turn == 0:
                        first = reply.actions if first is None else first
                        if not np.allclose(reply.actions, first, atol=1e-4):
                            tally.errors["another robot's answer"] += 1
                except Exception as error:
                    tally.errors[type(error).__name__] += 1
                    continue
                tally.add(reply)


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}


def growth_mib(memory: list[dict[str, float]], of: str) -> float | None:
    """Mean of the last tenth of the requests minus that of the second tenth; the first is warm-up."""
    most = memory[-1]["requests"] if memory else 0
    early = [each[of] for each in memory if 0.1 * most <= each["requests"] <= 0.2 * most]
    late = [each[of] for each in memory if each["requests"] >= 0.9 * most]
    return round(float(np.mean(late) - np.mean(early)), 2) if early and late else None


def soak(requests: int, clients: int, out: Path, most_s: float, every_s: float = 1.0) -> dict[str, Any]:
    """Run, write ``out`` as it goes, and return what was written."""
    tally, memory = Tally(requests), list[dict[str, float]]()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        cheap_policy().save_pretrained(folder)
        provenance = collect_provenance(packages=(*PACKAGES, "websockets", "msgpack"))
        command = [sys.executable, "-m", "specpolicy.cli", "serve", f"checkpoint={folder}", f"sampler={SAMPLER}"]
        server = subprocess.Popen(
            [*command, "port=0", "threads=1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert server.stdout is not None
            address = re.search(r"ws://[^;]+", server.stdout.readline())
            if address is None:
                raise RuntimeError("the server did not start")
            start = time.perf_counter()

            def results(completed: bool) -> dict[str, Any]:
                seconds = time.perf_counter() - start
                return {
                    "question": "does a policy server grow, err or slow down over many requests?",
                    "completed": completed,
                    "n": tally.done,
                    "clients": clients,
                    "sessions_of": SESSION,
                    "sampler": SAMPLER,
                    "errors": dict(tally.errors),
                    "seconds": round(seconds, 1),
                    "requests_per_s": round(tally.done / seconds, 1),
                    "round_trip_ms": quantiles(tally.round_trips_ms[: tally.samples]),
                    "server_ms": quantiles(tally.server_ms[: tally.samples]),
                    "batch_sizes": {str(size): count for size, count in sorted(tally.batches.items())},
                    "growth_mib": {of: growth_mib(memory, f"{of}_mib") for of in ("server", "clients")},
                    "memory": memory,
                    "provenance": provenance,
                }

            robots = [
                threading.Thread(target=robot, args=(address[0], number, tally), daemon=True)
                for number in range(clients)
            ]
            for each in robots:
                each.start()
            with progress_bar("requests", requests) as bar:
                seen, written = 0, 0.0
                try:
                    while any(each.is_alive() for each in robots):
                        robots[0].join(every_s)
                        now = time.perf_counter() - start
                        memory.append(
                            {
                                "seconds": round(now, 1),
                                "requests": tally.done,
                                "server_mib": round(resident_mib(server.pid), 2),
                                "clients_mib": round(resident_mib(os.getpid()), 2),
                            }
                        )
                        bar.advance(tally.done - seen)
                        seen = tally.done
                        tally.stopped |= now > most_s
                        if now - written > WRITE_S:
                            write(out, results(completed=False))
                            written = now
                except KeyboardInterrupt:
                    tally.stopped = True
                    raise
            found = results(completed=tally.done + sum(tally.errors.values()) >= requests)
            write(out, found)
            return found
        finally:
            server.terminate()
            server.wait(60)


def write(out: Path, results: dict[str, Any]) -> None:
    with atomic_path(out) as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--most-seconds", type=float, default=1800.0, help="stop after so long, and say so")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = soak(options.requests, options.clients, options.out, options.most_seconds)
    print({name: found[name] for name in ("completed", "n", "errors", "seconds", "requests_per_s", "growth_mib")})
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
