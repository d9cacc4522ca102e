"""The safe action comes from another process, whatever becomes of the loop."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_fakes import SPEC, TickEnv, TickPolicy
from file_sender import FileSender

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from bench_watchdog import BEATS, FAULTS, provoke

from specpolicy.control import watchdog_process as process
from specpolicy.control.clocks import RealTimeClock
from specpolicy.control.executors import Lockstep
from specpolicy.control.loop import ControlLoop
from specpolicy.control.realtime import request_real_time
from specpolicy.control.watchdog import Watchdog, WatchdogConfig, WatchdogError, WatchdogTripped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends signals to processes and waits for their ends")


@pytest.mark.parametrize("fault", FAULTS)
def test_the_safe_action_comes_within_a_bound(fault: str) -> None:
    """Bounds are wide, for a loaded machine; benchmarks/results/watchdog has the measured ones."""
    deadline_s = 0.3
    outcome = provoke(fault, deadline_s)
    if outcome.early:
        pytest.skip("the machine is too slow for this deadline")
    assert outcome.action == (0.0, float(BEATS))  # standstill as of the last heartbeat
    assert outcome.after_fault_s < deadline_s + 3.0
    if FAULTS[fault][0] == "late":
        assert outcome.after_beat_s >= deadline_s  # and not before


def test_nothing_is_sent_by_a_loop_that_ends_as_it_should(tmp_path: Path) -> None:
    sender = FileSender(tmp_path / "robot")
    with Watchdog(sender, 2, WatchdogConfig(deadline_s=0.2)) as watchdog:
        time.sleep(0.4)  # not armed yet
        watchdog.beat(np.zeros(2))
        watchdog.disarm()
        time.sleep(0.4)  # between two episodes
        watchdog.beat(np.zeros(2))
    assert not sender.path.exists() and watchdog.tripped is None and watchdog.sent_s is None


def test_a_loop_that_comes_back_does_not_go_on(tmp_path: Path) -> None:
    sender = FileSender(tmp_path / "robot", fails=2)
    config = WatchdogConfig(deadline_s=0.1, resend_s=0.3, resend_hz=20.0)
    with Watchdog(sender, 2, config) as watchdog:
        begun = time.monotonic()
        watchdog.beat(np.array([0.0, 7.0]))
        time.sleep(1.0)
        with pytest.raises(WatchdogTripped, match=r"the watchdog sent the safe action \(late\)"):
            watchdog.beat(np.zeros(2))
    assert watchdog.tripped == "late" and watchdog.sent_s is not None and watchdog.sent_s >= begun + 0.1
    assert 2 <= len(sender.sent()) <= 5 and sender.sent()[0] == [0.0, 7.0]  # again and again, after two failures


def test_a_configured_action_takes_the_place_of_standstill(tmp_path: Path) -> None:
    sender = FileSender(tmp_path / "robot")
    with pytest.raises(ZeroDivisionError), Watchdog(sender, 2, WatchdogConfig(action=[1.0, 2.0])) as watchdog:
        watchdog.beat(np.zeros(2))
        raise ZeroDivisionError
    assert sender.sent() == [[1.0, 2.0]] and watchdog.tripped == "failed"


class Stalling(TickEnv):
    """Its seventh step takes long."""

    def step(self, action: Any) -> Any:
        if len(self.actions) == 6:
            time.sleep(1.5)
        return super().step(action)


class Failing(TickEnv):
    """Its seventh step raises."""

    def step(self, action: Any) -> Any:
        if len(self.actions) == 6:
            raise ConnectionError("the robot does not answer")
        return super().step(action)


@pytest.mark.parametrize(
    ("make", "error", "reason"), [(Stalling, WatchdogTripped, "late"), (Failing, ConnectionError, "failed")]
)
def test_a_control_loop_beats_with_every_command(tmp_path: Path, make: Any, error: Any, reason: str) -> None:
    sender = FileSender(tmp_path / "robot")
    with Watchdog(sender, 3, WatchdogConfig(deadline_s=0.5)) as watchdog:
        env = make(limit=30)
        loop = ControlLoop(env, TickPolicy(), Lockstep(4), RealTimeClock(20.0), action_spec=SPEC, watchdog=watchdog)
        with pytest.raises(error):
            loop.run(0)
    assert watchdog.tripped == reason
    (sent,) = sender.sent()
    assert sent == [0.0, 0.0, 0.5]  # no movement, the gripper as it was commanded last
    assert len(env.actions) == (7 if make is Stalling else 6)


def test_a_control_loop_that_ends_disarms(tmp_path: Path) -> None:
    sender = FileSender(tmp_path / "robot")
    with Watchdog(sender, 3, WatchdogConfig(deadline_s=0.5)) as watchdog:
        loop = ControlLoop(
            TickEnv(limit=5), TickPolicy(), Lockstep(4), RealTimeClock(20.0), action_spec=SPEC, watchdog=watchdog
        )
        assert len(loop.run(0).ticks) == 5
        time.sleep(0.8)
        assert len(loop.run(1).ticks) == 5
    assert not sender.path.exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"deadline_s": 0.0}, "watchdog: deadline_s=0.0"),
        ({"resend_s": -1.0}, "watchdog: resend_s"),
        ({"action": [float("nan")]}, "watchdog: action=nan"),
        ({"priority": 100}, "priority=100; expected 1 to 99"),
    ],
)
def test_settings_are_checked_where_they_are_made(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WatchdogConfig(**config)


def test_a_watchdog_that_cannot_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(WatchdogError, match="could not start: OSError: no such robot"):
        Watchdog(FileSender(tmp_path), 2)
    with pytest.raises(WatchdogError, match="sender cannot be pickled"):
        Watchdog(threading.Lock().acquire, 2)
    with pytest.raises(ValueError, match="action has 1 values; the robot takes 2"):
        Watchdog(FileSender(tmp_path / "x"), 2, WatchdogConfig(action=[0.0]))
    with Watchdog(FileSender(tmp_path / "x"), 2, WatchdogConfig(deadline_s=0.04)) as watchdog:
        with pytest.raises(ValueError, match="it sends 2 numbers; the actions of this loop have 3"):
            watchdog.check(3, 20.0)
        with pytest.raises(ValueError, match=r"deadline_s=0.04 is not longer than a tick of 20 Hz; take 0.125"):
            watchdog.check(2, 20.0)


def test_a_heartbeat_is_never_read_in_halves() -> None:
    memory = bytearray(process.memory_size(3))
    for number in range(5):
        process.write_beat(memory, (float(number),) * 3)
        assert process.read_action(memory, 3) == (float(number),) * 3
    read_word, coming = process.read_word, [7.0, 9.0]

    def interrupted(buffer: Any, offset: int) -> int:
        value = read_word(buffer, offset)
        beats, coming[:] = list(coming), []
        for each in beats:  # both slots are written between the reader's first look and its last
            process.write_beat(buffer, (each,) * 3)
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "read_word", interrupted)
        assert process.read_action(memory, 3) == (9.0,) * 3


def test_real_time_is_given_or_its_refusal_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    (note,) = request_real_time(20, lock_memory=False)
    assert "no SCHED_FIFO (Operation not permitted)" in note and "ulimit -r 20" in note
    with pytest.raises(ValueError, match="priority=0"):
        request_real_time(0)
    with pytest.raises(ValueError, match=r"cores=\[4096\]: expected some of"):
        request_real_time(20, [4096])


def test_the_watchdog_s_own_process_asks_for_real_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Watchdog(FileSender(tmp_path / "x"), 1, WatchdogConfig(priority=20)) as dog:
        pid = dog._process.pid
        policy = os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK
        assert policy == os.SCHED_FIFO or "no SCHED_FIFO" in caplog.text
