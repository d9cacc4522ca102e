"""How soon does the safe action come when a control loop dies, hangs, fails or falls behind? How much do ticks jitter?

Each fault is provoked in a process of its own, which beats at a fixed rate, while other processes load the machine. The
time runs from the fault to the end of the sender's first call in the watchdog's process, on the system's monotonic
clock; a hang can be seen no sooner than the deadline after the last heartbeat. Jitter is that of ``RealTimeClock``: how
long after its due time each tick begins, with and without real-time scheduling, in turn and under the same load.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from socket_sender import MESSAGE, SocketSender

from specpolicy.control.clocks import RealTimeClock
from specpolicy.control.realtime import request_real_time
from specpolicy.control.watchdog import Watchdog, WatchdogConfig, WatchdogTripped
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

RESULTS = Path(__file__).resolve().parent / "results" / "watchdog"
BEATS = 6  # before the fault
PERIOD_S = 0.01
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Attributes:
        reason: why the watchdog sent. after_fault_s, after_beat_s: when, since the fault and the last heartbeat.
        action: what was sent. early: it had tripped before the fault, for the machine was too slow for the deadline.
    """

    reason: str
    after_fault_s: float
    after_beat_s: float
    action: tuple[float, ...]
    early: bool


def _raise() -> None:
    raise ArithmeticError("simulated failure of the loop")


def _block_interpreter(seconds: float) -> None:
    """Another thread computes in C without releasing the interpreter's lock."""
    blocking = threading.Thread(target=ctypes.PyDLL(None).usleep, args=(int(seconds * 1e6),))
    blocking.start()
    blocking.join()


FAULTS = {
    "SIGKILL": ("died", lambda deadline_s: os.kill(os.getpid(), signal.SIGKILL)),
    "SIGSTOP": ("late", lambda deadline_s: os.kill(os.getpid(), signal.SIGSTOP)),
    "exception": ("failed", lambda deadline_s: _raise()),
    "blocked interpreter": ("late", lambda deadline_s: _block_interpreter(4 * deadline_s)),
    "falls behind": ("late", lambda deadline_s: time.sleep(4 * deadline_s)),
}
"""The reason that the watchdog is to find, and what provokes it."""


def _loop(fault: str, address: str, config: WatchdogConfig, priority: int | None, beats: Any) -> None:
    """Beat, then fail; ``beats`` receives the number of heartbeats, the times of the last one and of the fault."""
    if priority is not None:
        request_real_time(priority, lock_memory=False)
    with suppress(ArithmeticError), Watchdog(SocketSender(address), 2, config) as watchdog:
        due = time.monotonic()
        try:
            for number in range(1, BEATS + 1):
                watchdog.beat(np.array([0.0, float(number)]))
                beats[:2] = number, time.monotonic_ns()
                due += PERIOD_S
                time.sleep(max(due - time.monotonic(), 0.0))
            beats[2] = time.monotonic_ns()
            FAULTS[fault][1](config.deadline_s)
            watchdog.beat(np.zeros(2))
            beats[3] = 1  # it went on as if nothing had happened
        except WatchdogTripped:
            pass


def provoke(fault: str, deadline_s: float, priority: int | None = None, wait_s: float = 60.0) -> Outcome:
    """Provoke a fault in a loop of its own process, and wait for the safe action.

    Args:
        fault: one of FAULTS.
        deadline_s: of the watchdog.
        priority: of the watchdog's process in real time, the loop one below; None: scheduled as any other.
        wait_s: how long to wait.

    Raises:
        RuntimeError: no safe action came, or the loop went on after it.
    """
    beats = _FORK.Array("q", 4, lock=False)
    config = WatchdogConfig(deadline_s=deadline_s, priority=priority)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        address = str(Path(folder) / "robot")
        receiver.bind(address)
        receiver.settimeout(wait_s)
        below = None if priority is None else priority - 1
        loop = _FORK.Process(target=_loop, args=(fault, address, config, below, beats))
        loop.start()
        try:
            sent_ns, *action = MESSAGE.unpack(receiver.recv(64))
        except TimeoutError as error:
            raise RuntimeError(f"{fault}: no safe action within {wait_s:g} s") from error
        finally:
            if fault == "SIGSTOP" and loop.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(loop.pid, signal.SIGCONT)
            loop.join(wait_s)
            loop.kill()
    number, beat_ns, fault_ns, went_on = beats
    if went_on:
        raise RuntimeError(f"{fault}: the loop went on after the safe action")
    early = fault_ns == 0 or sent_ns < fault_ns
    return Outcome(
        FAULTS[fault][0], (sent_ns - fault_ns) / 1e9, (sent_ns - beat_ns) / 1e9, tuple(action), early or not number
    )


def _spin(until: Any) -> None:
    while not until.value:
        sum(range(20_000))


@contextmanager
def load(processes: int) -> Iterator[None]:
    """So many processes that compute without pause."""
    until = _FORK.Value("b", 0, lock=False)
    spinning = [_FORK.Process(target=_spin, args=(until,), daemon=True) for _ in range(processes)]
    for each in spinning:
        each.start()
    try:
        yield
    finally:
        until.value = 1
        for each in spinning:
            each.join()


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = (round(1e3 * float(each), 3) for each in np.quantile(seconds, (0.5, 0.95, 0.99)))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": round(1e3 * max(seconds), 3), "n": len(seconds)}


def measure_latency(count: int, deadline_s: float, priority: int | None, out: Path) -> None:
    """Provoke every fault ``count`` times, in turn; early trips are counted, and repeated.

    Results are written as they come; a run that was interrupted goes on with the same settings.
    """
    settings = {"deadline_ms": 1e3 * deadline_s, "heartbeats_hz": 1 / PERIOD_S, "priority": priority}
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if any(result.get(name) != value for name, value in settings.items()):
        result = {**settings, "load": [], "provenance": collect_provenance()}
    for fault in FAULTS:
        result.setdefault(fault, {"after_fault_s": [], "after_last_heartbeat_s": [], "tripped_before_the_fault": 0})
    done = sum(len(result[fault]["after_fault_s"]) for fault in FAULTS)
    with progress_bar("faults", count * len(FAULTS), done) as bar:
        while missing := [fault for fault in FAULTS if len(result[fault]["after_fault_s"]) < count]:
            for fault in missing:
                outcome, values = provoke(fault, deadline_s, priority), result[fault]
                if outcome.early:
                    values["tripped_before_the_fault"] += 1
                    continue
                assert outcome.action == (0.0, float(BEATS)), outcome
                values["after_fault_s"].append(round(outcome.after_fault_s, 6))
                values["after_last_heartbeat_s"].append(round(outcome.after_beat_s, 6))
                bar.advance()
            result["load"].append(round(os.getloadavg()[0], 1))
            write(result, out)


def write(result: dict[str, Any], out: Path) -> None:
    """Write a result, and the table of all that there are."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as path:
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    with atomic_path(out.with_name("table.md")) as path:
        path.write_text(overview(out.parent), encoding="utf-8")


def _tick(rate_hz: float, seconds: float, priority: int | None, pipe: Any) -> None:
    notes = [] if priority is None else request_real_time(priority, [max(os.sched_getaffinity(0))])
    clock = RealTimeClock(rate_hz)
    clock.start(0, 0)
    late, tick = [], 0
    while clock.now() < seconds:
        tick = clock.next_tick(tick)
        late.append(clock.now() - clock.due(tick))
    clock.finish()
    pipe.send((late, tick + 1, notes))


def measure_jitter(rate_hz: float, seconds: float, repeats: int, priority: int) -> dict[str, Any]:
    """Ticks of a loop that does nothing, scheduled as any other and in real time, in turn."""
    names: dict[str, int | None] = {"ordinary": None, "real time": priority}
    late: dict[str, list[float]] = {name: [] for name in names}
    skipped = dict.fromkeys(names, 0)
    refused: list[str] = []
    for _ in range(repeats):
        for name, each in names.items():
            receiving, sending = _FORK.Pipe(False)
            ticking = _FORK.Process(target=_tick, args=(rate_hz, seconds, each, sending))
            ticking.start()
            values, ticks, notes = receiving.recv()
            ticking.join()
            late[name] += values
            skipped[name] += ticks - 1 - len(values)
            refused = notes or refused
    out = {name: {**quantiles_ms(values), "skipped_ticks": skipped[name]} for name, values in late.items()}
    return {"rate_hz": rate_hz, "priority": priority, "not_allowed": refused, **out}


def overview(folder: Path) -> str:
    """The table of what has been measured."""
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    lines = [
        "| measured | scheduling | n | median (ms) | 99 % (ms) | largest (ms) |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]

    def add(what: str, scheduling: str, values: dict[str, Any]) -> None:
        numbers = " | ".join(f"{values[name]:.2f}" for name in ("p50_ms", "p99_ms", "max_ms"))
        lines.append(f"| {what} | {scheduling} | {values['n']} | {numbers} |")

    for stem, scheduling in (("faults", "real time"), ("faults_ordinary", "ordinary")):
        for fault in FAULTS:
            late = FAULTS[fault][0] == "late"
            values = read.get(stem, {}).get(fault, {}).get("after_last_heartbeat_s" if late else "after_fault_s")
            if values:
                since = f"the last heartbeat; deadline {read[stem]['deadline_ms']:.0f} ms" if late else "then"
                add(f"{fault}, since {since}", scheduling, quantiles_ms(values))
    for scheduling in ("real time", "ordinary"):
        if "jitter" in read:
            add(f"tick after its due time, {read['jitter']['rate_hz']:.0f} Hz", scheduling, read["jitter"][scheduling])
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["latency", "jitter"])
    parser.add_argument("--count", type=int, default=100, help="faults of each kind")
    parser.add_argument("--deadline-ms", type=float, default=50.0)
    parser.add_argument("--priority", type=int, default=50, help="of SCHED_FIFO; 0: ordinary scheduling")
    parser.add_argument("--load", type=int, default=4, help="processes that compute beside it")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part of the jitter's measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    name = "jitter" if options.what == "jitter" else "faults" if options.priority else "faults_ordinary"
    out = options.out / f"{name}.json"
    with load(options.load):
        if options.what == "latency":
            measure_latency(options.count, options.deadline_ms / 1e3, options.priority or None, out)
        else:
            result = measure_jitter(100.0, options.seconds, 3, options.priority or 50)
            write({**result, "load": [round(os.getloadavg()[0], 1)], "provenance": collect_provenance()}, out)
    print(overview(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
