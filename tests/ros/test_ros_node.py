"""The node and a simulator as two processes over the loopback interface: the same actions as in one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from specpolicy.config import compose

ROOT = Path(__file__).resolve().parents[2]
SEED, TICKS = 100000, 24

pytestmark = [
    pytest.mark.slow,  # nodes and their watchdogs, in real time
    pytest.mark.skipif(find_spec("rclpy") is None, reason="needs ROS 2: pip install 'specpolicy[ros]'"),
    pytest.mark.skipif(find_spec("gym_pusht") is None, reason="needs PushT: pip install 'specpolicy[pusht]'"),
]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """A domain of its own on the loopback interface."""
    domain = str(1 + os.getpid() % 100)
    return {**os.environ, "ROS_LOCALHOST_ONLY": "1", "ROS_DOMAIN_ID": domain, "OMP_NUM_THREADS": "1"}


@contextmanager
def node(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The policy's node, ended by SIGTERM."""
    command = [
        sys.executable, "-m", "specpolicy.cli", "ros", "checkpoints/pusht", "config=pusht", "rate_hz=10",
        "sampler=free_block", *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()


def simulate(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/simulate_over_ros.py", "pusht", "--rate", "10", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def in_one_process() -> np.ndarray[Any, Any]:
    from hydra.utils import instantiate

    from specpolicy.control import ControlLoop, Guards, PolicyRunner, RecedingHorizon, SimulatedLatencyClock
    from specpolicy.control.latency import Constant
    from specpolicy.interop.loading import load_policy
    from specpolicy.ros.interface import load_interface

    cfg = compose("control", ["task=pusht", "sampler=free_block"])
    policy = load_policy(ROOT / "checkpoints" / "pusht")
    loop = ControlLoop(
        gymnasium.make(cfg.task.env),
        PolicyRunner(policy, instantiate(cfg.sampler)(policy)),
        RecedingHorizon(policy.config.n_action_steps),
        SimulatedLatencyClock(10, Constant(0.2)),
        Guards(),
        load_interface("pusht").spec,
        max_ticks=TICKS,
    )
    return np.array([row.action for row in loop.run(SEED).ticks])


def test_in_lockstep_the_actions_are_those_of_the_loop_in_one_process(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Bit by bit, two ticks of latency an inference included."""
    out, log = tmp_path / "actions.npz", tmp_path / "traces"
    options = ["executor=receding_horizon", "latency_ms=200", "lockstep=true", "reliable=true", f"out={log}"]
    with node(environment, "autostart=false", *options) as process:
        steps = ["--lockstep", "--max-ticks", str(TICKS), "--seeds", str(SEED)]
        done = simulate(environment, *steps, "--out", str(out))
    assert done.returncode == 0, done.stderr + str(process.stderr and process.stderr.read())
    assert json.loads(done.stdout.splitlines()[-1])["actions"] == TICKS
    with np.load(out) as read:
        assert np.array_equal(read[str(SEED)], in_one_process())
    assert process.returncode == 0
    if find_spec("pyarrow") is not None:
        from specpolicy.control.trace import read_trace

        trace = read_trace(log / "activation-001.parquet")
        assert not trace.faults and len(trace.ticks) == TICKS - 1  # the last one's observation never came


def test_a_robot_whose_topic_dies_is_stopped_and_the_process_says_why(environment: dict[str, str]) -> None:
    """In real time: the simulator is killed while the node plays."""
    with node(environment, "guards.give_up_after=3") as process:
        simulator = subprocess.Popen(
            [sys.executable, "examples/simulate_over_ros.py", "pusht", "--rate", "10", "--no-node"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert simulator.stdout is not None
            assert simulator.stdout.readline() == "begun\n"
            time.sleep(1.0)
        finally:
            simulator.kill()
        assert process.wait(60) == 2
        assert process.stderr is not None
        last = process.stderr.read().splitlines()[-1]
    assert last.startswith("error: stopped (") and "s old, and 0.3 s are allowed" in last


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_node_that_is_killed_or_stopped_is_answered_for_by_its_watchdog(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The configured action arrives on the topic, from another process, within the deadline and a bound."""
    import rclpy
    from std_msgs.msg import Float64MultiArray

    # a domain for each case: on the loopback interface a few participants find each other, and killed ones linger
    domain = {"SIGKILL": 201, "SIGSTOP": 216}[name] + os.getpid() % 15
    environment = {**environment, "ROS_DOMAIN_ID": str(domain)}
    for key in ("ROS_LOCALHOST_ONLY", "ROS_DOMAIN_ID"):
        monkeypatch.setenv(key, environment[key])
    context = rclpy.context.Context()
    rclpy.init(context=context)
    listener = rclpy.create_node("listener", context=context)
    spinner = rclpy.executors.SingleThreadedExecutor(context=context)
    spinner.add_node(listener)
    heard: list[tuple[float, list[float]]] = []
    listener.create_subscription(
        Float64MultiArray, "/finger/command", lambda m: heard.append((time.monotonic(), list(m.data))), 50
    )
    options = ["watchdog=standard", "watchdog.deadline_s=0.5", "watchdog.action=[123,321]"]
    with node(environment, *options) as process:
        simulator = subprocess.Popen(
            [sys.executable, "examples/simulate_over_ros.py", "pusht", "--rate", "10", "--no-node"],
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            end = time.monotonic() + 120
            while len(heard) < 8 and time.monotonic() < end and process.poll() is None:
                spinner.spin_once(timeout_sec=0.1)
            assert len(heard) >= 8 and [123.0, 321.0] not in [each for _, each in heard]
            struck = time.monotonic()
            process.send_signal(getattr(signal, name))
            while [123.0, 321.0] not in [each for _, each in heard] and time.monotonic() < struck + 10:
                spinner.spin_once(timeout_sec=0.05)
            answered = [at - struck for at, each in heard if each == [123.0, 321.0]]
            assert answered and answered[0] < 0.5 + 1.0
        finally:
            simulator.kill()
            process.kill()
            listener.destroy_node()
            context.try_shutdown()
