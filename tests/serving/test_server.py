"""A server and its clients: sessions, batches, timings, and nobody's answer given to another."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile_frames import hostile_frames
from hypothesis import HealthCheck, given, settings
from serving_fakes import BREAKING, SPEC, EchoEngine, eventually, numbers, observation, running, tiny_policy, whole
from websockets.sync.client import connect

import specpolicy
from specpolicy import samplers
from specpolicy.serving.batching import BatchedPolicy
from specpolicy.serving.client import Client, Reply
from specpolicy.serving.protocol import RequestRefused, ServerFailed, pack, unpack


def test_a_policy_answers_as_it_would_at_home() -> None:
    policy = tiny_policy()
    engine = BatchedPolicy(policy, samplers.ddim(policy.scheduler, 4))
    history = [observation(0.1), observation(0.2)]
    with running(engine) as server, Client(server.url) as client:
        assert client.metadata["policy"] == engine.describe()
        assert client.metadata["version"] == specpolicy.__version__
        client.reset(seed=11)
        client.observe(history[0])
        reply = client.infer(history[1])
    stacked = {name: np.stack([step[name] for step in history]) for name in SPEC.keys}
    [expected] = engine.run([whole(stacked, 11)])
    np.testing.assert_array_equal(reply.actions, expected.actions)
    assert reply.actions.dtype == np.float32 and (reply.passes, reply.acceptance, reply.batch) == (4, None, 1)


def test_a_session_remembers_observations_and_its_stream_until_it_is_reset() -> None:
    with running(EchoEngine()) as server, Client(server.url) as client:
        told = client.metadata["session"]["seed"]
        first, second = client.infer(observation(1)), client.infer(observation(2))
        assert [row[0] for row in second.actions[:2]] == [1, 2]
        assert [first.actions[2].tolist(), second.actions[2].tolist()] == numbers(told, 2)
        client.reset()
        third = client.infer(observation(3))
        assert [row[0] for row in third.actions[:2]] == [3, 3], "the history is forgotten"
        assert third.actions[2].tolist() == numbers(told, 3)[2], "the stream goes on"
        client.reset(seed=5)
        again = [client.infer(observation(4)) for _ in range(2)]
        client.reset(seed=np.int64(5), repeat=np.int32(2))
        assert client.infer(observation(4)).actions[2].tolist() == numbers(5, 1, repeat=2)[0]
        assert [reply.actions[2].tolist() for reply in again] == numbers(5, 2)
        assert (first.acceptance, first.passes, first.ignored) == (0.75, 5, ())


def test_sessions_have_streams_and_histories_of_their_own() -> None:
    with running(EchoEngine()) as server, Client(server.url) as one, Client(server.url) as other:
        one.reset(seed=1)
        other.reset(seed=2)
        one.infer(observation(10))
        reply = other.infer(observation(20))
        assert reply.actions[:2, 0].tolist() == [20, 20] and reply.actions[2].tolist() == numbers(2, 1)[0]
        assert one.metadata["session"]["name"] != other.metadata["session"]["name"] == reply.session


def test_mistakes_are_answered_with_what_was_expected_and_the_connection_stays() -> None:
    with running(EchoEngine()) as server, Client(server.url) as client:
        session = client.infer(observation(1)).session
        with pytest.raises(RequestRefused, match=r"has shape \(2,\); expected \(3,\) for the present step"):
            client.infer(observation(1) | {"pose": np.zeros(2)})
        with pytest.raises(RequestRefused, match="lacks"):
            client.observe({})
        with pytest.raises(RequestRefused, match="seed=-1; expected a whole number from 0"):
            client.reset(seed=-1)
        with pytest.raises(ServerFailed, match="failed with ZeroDivisionError; the server's log") as failed:
            client.infer(observation(BREAKING))
        assert "secret detail" not in str(failed.value)
        reply = client.infer(observation(2) | {"prompt": "lift", "camera": np.zeros(3, np.uint8)})
        assert reply.session == session and reply.ignored == ("camera", "prompt")


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ("text", "a text frame came"),
        (b"", "it is incomplete"),
        (b"\xc1", "not a msgpack message"),
        (pack({})[:0] + b"\x93\x01\x02\x03", "the request is a list; expected a map"),
        (b"\x81\x01\x02", "observation lacks"),
        (pack({"__request__": "infer", "observation": [1]}), "expected a map of names to arrays"),
        (pack({"__request__": "fly"}), "known: infer, observe, reset"),
        (pack({"__request__": "infer", "id": -1}), "expected a number from 0 on"),
        (pack({"__request__": "infer"}), "the observation is None"),
        (pack({"__request__": "reset", "id": 1, "sed": 3}), r"unknown fields \['sed'\]"),
        (pack({"__request__": "reset", "seed": 2**63}), "expected a whole number from 0 to"),
        (pack({"__request__": "reset", "seed": 1, "repeat": -1}), "repeat=-1; expected a whole number from 0 to"),
        (pack({"__request__": "reset", "repeat": 1}), "repeat=1 without a seed"),
        (pack({}), "observation lacks"),
    ],
)
def test_unreadable_requests_say_what_is_wrong(frame: bytes | str, says: str) -> None:
    with running(EchoEngine()) as server, connect(server.url, compression=None, proxy=None) as connection:
        connection.recv(20)
        connection.send(frame)
        reply = connection.recv(20)
        text = reply if isinstance(reply, str) else unpack(reply)["error"]["message"]
        assert re.search(says, text), text
        connection.send(pack(observation(1)))
        assert unpack(connection.recv(20))["actions"][1, 0] == 1  # type: ignore[arg-type]


def test_thousands_of_malformed_frames_over_a_connection_that_goes_on() -> None:
    """Each gets exactly one reply, in order, and right requests among them are answered rightly."""
    sent = {"frames": 0}

    def check(frames: list[bytes]) -> None:
        for frame in frames:
            connection.send(frame)
        connection.send(pack({"__request__": "infer", "id": 2**40, "observation": observation(42)}))
        replies = [connection.recv(60) for _ in frames]
        assert all(isinstance(reply, str) or unpack(reply).get("id") != 2**40 for reply in replies)
        last = unpack(connection.recv(60))  # type: ignore[arg-type]
        assert last["id"] == 2**40 and last["actions"][1, 0] == 42
        sent["frames"] += len(frames)

    with running(EchoEngine()) as server, connect(server.url, compression=None, proxy=None) as connection:
        connection.recv(20)
        everything = settings(max_examples=75, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        everything(given(hostile_frames(40))(check))()
    assert sent["frames"] >= 3000


def test_timings_add_up() -> None:
    engine = EchoEngine(seconds=0.1)
    with running(engine) as server, Client(server.url) as client:
        timing = client.infer(observation()).timing
    assert timing.infer_ms >= 99 and timing.queue_ms >= 0
    assert timing.server_ms >= timing.infer_ms + timing.queue_ms - 1e-6
    assert timing.round_trip_ms > timing.server_ms > 0
    assert timing.network_ms == pytest.approx(timing.round_trip_ms - timing.server_ms)


def test_robots_share_a_batch_and_get_the_same_answers_as_alone() -> None:
    engine = EchoEngine()
    with running(engine, max_wait_ms=60_000.0) as server:
        clients = [Client(server.url, timeout_s=60) for _ in range(3)]
        for seed, client in enumerate(clients):
            client.reset(seed)
        with ThreadPoolExecutor(3) as pool:
            replies = list(pool.map(lambda at: clients[at].infer(observation(at)), range(3)))
        for client in clients:
            client.close()
    assert engine.batches == [3] and [reply.batch for reply in replies] == [3, 3, 3]
    for seed, reply in enumerate(replies):
        assert reply.actions[1, 0] == seed and reply.actions[2].tolist() == numbers(seed, 1)[0]


def test_who_leaves_keeps_nobody_waiting() -> None:
    """Two sessions wait for one another; when one hangs up, the other's batch is complete."""
    with running(EchoEngine(), max_wait_ms=60_000.0) as server, Client(server.url, timeout_s=60) as stays:
        leaves = Client(server.url)
        assert leaves.metadata and stays.metadata
        threading.Timer(0.2, leaves.close).start()
        assert stays.infer(observation(1)).batch == 1


def test_the_event_loop_goes_on_during_inference() -> None:
    engine = EchoEngine()
    engine.gate.clear()
    with running(engine) as server, Client(server.url, timeout_s=60) as busy, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(busy.infer, observation(1))
        assert engine.entered.wait(20)
        with urllib.request.urlopen(server.url.replace("ws://", "http://") + "/healthz", timeout=20) as health:
            assert (health.status, health.read()) == (200, b"OK\n")
        with Client(server.url) as other:
            other.observe(observation(2))
            with pytest.raises(RequestRefused):
                other.infer({})
        assert not waiting.done()
        engine.gate.set()
        assert waiting.result(60).actions[1, 0] == 1


def test_nothing_is_answered_to_the_wrong_client() -> None:
    """Eight at once, some of which hang up in the middle of a request; every answer is checked against its question."""
    engine = EchoEngine()

    def robot(number: int) -> int:
        client = Client(server.url, timeout_s=60)
        client.reset(seed=number)
        expected = numbers(number, 60)
        for turn in range(60):
            reply: Reply = client.infer(observation(1000 * number + turn))
            assert reply.actions[1].tolist() == [1000 * number + turn] * 3
            assert reply.actions[0, 0] == 1000 * number + max(turn - 1, 0)
            assert reply.actions[2].tolist() == expected[turn]
        client.close()
        return number

    def quitter(number: int) -> int:
        for _ in range(15):
            with connect(server.url, compression=None, proxy=None) as connection:
                connection.recv(60)
                connection.send(pack(observation(-1)))
                connection.socket.shutdown(2)
        return number

    with running(engine) as server, ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda n: quitter(n) if n >= 6 else robot(n), range(8))) == list(range(8))
    assert max(engine.batches) > 1, "they did share batches"


def test_a_client_that_leaves_takes_its_request_out_of_the_queue() -> None:
    engine = EchoEngine()
    engine.gate.clear()
    with running(engine) as server, Client(server.url, timeout_s=60) as busy, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(busy.infer, observation(1))
        assert engine.entered.wait(20)
        with connect(server.url, compression=None, proxy=None) as leaves:
            leaves.recv(20)
            leaves.send(pack(observation(2)))
            time.sleep(0.2)
        assert eventually(lambda: len(server.server._sessions) == 1)
        engine.gate.set()
        waiting.result(60)
        busy.infer(observation(3))
    assert engine.batches == [1, 1]
