"""Servers that are told to stop, and servers that are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving_fakes import EchoEngine, observation, running

from specpolicy.serving.client import Client
from specpolicy.serving.protocol import ConnectionLost, ServerUnavailable


class Starter:
    """Processes with servers, one after another."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("server_program.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.hear() == {"ready": True}

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def start(self, port: int = 0, seconds: float = 0.0) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"port": port, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    started = Starter()
    yield started
    started.end()


def port_of(server: dict[str, Any]) -> int:
    return int(server["url"].rsplit(":", 1)[1])


def test_a_killed_server_costs_one_request_and_the_next_finds_its_successor(starter: Starter) -> None:
    server = starter.start(seconds=30.0)
    client = Client(server["url"], timeout_s=60, connect_s=60)
    session = client.metadata["session"]["name"]
    with ThreadPoolExecutor(1) as pool:
        underway = pool.submit(client.infer, observation(1))
        time.sleep(0.3)
        assert not underway.done()
        os.kill(server["pid"], signal.SIGKILL)
        with pytest.raises(ConnectionLost, match="the connection to the server was lost"):
            underway.result(60)
    assert starter.hear() == {"ended": -signal.SIGKILL}
    with pytest.raises(ServerUnavailable):
        Client(server["url"], connect_s=0.2).infer(observation(2))
    successor = starter.start(port=port_of(server))
    reply = client.infer(observation(3))
    assert reply.actions[:2, 0].tolist() == [3, 3] and reply.session != session
    client.close()
    os.kill(successor["pid"], signal.SIGTERM)
    assert starter.hear() == {"ended": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_answers_what_has_begun(starter: Starter, number: signal.Signals) -> None:
    server = starter.start(seconds=1.0)
    one, other, idle = (Client(server["url"], timeout_s=60) for _ in range(3))
    assert idle.metadata and other.metadata
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one.infer, observation(1))
        time.sleep(0.2)
        second = pool.submit(other.infer, observation(2))  # waits for the first one's batch to end
        time.sleep(0.2)
        os.kill(server["pid"], number)
        assert [reply.result(60).actions[1, 0] for reply in (first, second)] == [1, 2]
    assert starter.hear() == {"ended": 0}
    for client in (one, idle):
        client._connect_s = 0.2
        with pytest.raises((ConnectionLost, ServerUnavailable)):
            client.infer(observation(3))
        client.close()


def test_who_is_connected_is_told_why_it_ends() -> None:
    with running(EchoEngine()) as server, Client(server.url) as client:
        assert client._connection is not None
        server.stop()
        with pytest.raises(ConnectionLost, match=r"the server is shutting down \(status 1001\)"):
            client._connection.ask({"__request__": "reset", "id": 1}, 20)


def test_no_new_connections_while_the_last_requests_are_answered() -> None:
    engine = EchoEngine()
    engine.gate.clear()
    with running(engine) as server, Client(server.url, timeout_s=60) as client, ThreadPoolExecutor(2) as pool:
        underway = pool.submit(client.infer, observation(1))
        assert engine.entered.wait(20)
        stopping = pool.submit(server.stop)
        time.sleep(0.2)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        assert not stopping.done()
        engine.gate.set()
        assert underway.result(60).actions[1, 0] == 1
        stopping.result(60)


def test_an_inference_that_does_not_end_is_given_up() -> None:
    engine = EchoEngine()
    engine.gate.clear()
    with (
        running(engine, grace_s=0.2) as server,
        Client(server.url, timeout_s=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        underway = pool.submit(client.infer, observation(1))
        assert engine.entered.wait(20)
        threading.Timer(1.0, engine.gate.set).start()
        server.stop()
        with pytest.raises(ConnectionLost, match="shutting down"):
            underway.result(60)
