"""The robot's side: light to import, honest about what went wrong, and back on its feet by itself."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_fakes import EchoEngine, eventually, observation, running
from websockets.sync.server import ServerConnection, serve

import specpolicy
from specpolicy.serving.client import Client, RetryableConnectionError
from specpolicy.serving.protocol import (
    PROTOCOL,
    ConnectionLost,
    FrameError,
    ProtocolError,
    RequestTimeout,
    ServerUnavailable,
    SettingsError,
    pack,
    unpack,
)

HELLO = {"protocol": PROTOCOL, "session": {"name": "x", "seed": 1}, "limits": {"max_message_bytes": 2**26}}


@contextmanager
def played(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A server that does as the test says."""
    with serve(handler, "127.0.0.1", 0, compression=None, max_size=None, close_timeout=0.2) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(20)


def answering(*replies: Any) -> Callable[[ServerConnection], None]:
    """A server that says hello and answers each request with the next of these."""

    def handler(connection: ServerConnection) -> None:
        connection.send(pack(HELLO))
        for reply in replies:
            request = unpack(connection.recv())  # type: ignore[arg-type]
            connection.send(reply(request) if callable(reply) else reply)

    return handler


def test_the_room_brings_numpy_msgpack_and_websockets_alone() -> None:
    """Under a bare parent package, so that what is imported is this room's doing."""
    package = str(Path(specpolicy.__file__).parent)
    code = (
        "import sys, types\n"
        "parent = types.ModuleType('specpolicy')\n"
        f"parent.__path__ = [{package!r}]\n"
        "sys.modules['specpolicy'] = parent\n"
        "from specpolicy.serving import Client\n"
        "Client('ws://127.0.0.1:1')\n"
        "roots = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "heavy = roots & {'torch', 'diffusers', 'jaxtyping', 'hydra', 'omegaconf', 'gymnasium', 'rich'}\n"
        "assert not heavy, heavy\n"
        "assert {'numpy', 'msgpack', 'websockets'} <= roots, roots\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_dependency_names_the_extra() -> None:
    for module in ("msgpack", "websockets"):
        code = (
            f"import sys; sys.modules[{module!r}] = None\n"
            "import types; parent = types.ModuleType('specpolicy'); sys.modules['specpolicy'] = parent\n"
            f"parent.__path__ = [{str(Path(specpolicy.__file__).parent)!r}]\n"
            "try:\n    import specpolicy.serving\n"
            "except ImportError as error:\n    assert \"pip install 'specpolicy[serving]'\" in str(error), error\n"
            "else:\n    raise AssertionError('imported')\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1", "ws://", "ws://h:99999", "ws://h:x", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(SettingsError, match="write ws://host:port or wss://host:port"):
        Client(url)


def test_arguments_that_make_no_sense() -> None:
    for wrong in ({"token": "line end\n"}, {"timeout_s": 0}, {"connect_s": -1}, {"ca_file": "x"}):
        with pytest.raises(SettingsError):
            Client("ws://127.0.0.1:1", **wrong)


def test_nobody_there() -> None:
    start = time.perf_counter()
    with pytest.raises(ServerUnavailable, match=r"no connection to ws://127.0.0.1:9 within 0.4 s: .*refused"):
        Client("ws://127.0.0.1:9", connect_s=0.4).infer(observation())
    assert time.perf_counter() - start < 5


def test_somebody_who_says_nothing() -> None:
    leave = threading.Event()
    with played(lambda connection: leave.wait(60)) as url:  # type: ignore[arg-type]
        with pytest.raises(ServerUnavailable, match="said nothing"):
            Client(url, connect_s=2).infer(observation())
        leave.set()


def test_an_earlier_attempt_may_know_more_than_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    def connect(*_: object) -> None:
        times.append(time.monotonic())
        raise RetryableConnectionError("it hung up" if len(times) < 3 else "timed out")

    monkeypatch.setattr("specpolicy.serving.client.Connection", connect)
    with pytest.raises(ServerUnavailable, match=r"within 1 s: it hung up; timed out$"):
        Client(connect_s=1).infer(observation())
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert 3 <= len(times) < 40 and min(waits) >= 0.02, "attempts are spread out"


def test_a_connection_made_at_the_last_moment_may_write_as_long_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, ...]] = []
    monkeypatch.setattr("specpolicy.serving.client.Connection", lambda address, *times: asked.append(times))
    Client(connect_s=0.001, timeout_s=7.0, ping_s=3.0).__enter__()
    [(handshake_s, write_s, ping_s)] = asked
    assert handshake_s == 0.001 and (write_s, ping_s) == (7.0, 3.0)


@pytest.mark.parametrize(
    ("hello", "says"),
    [(pack({"model": "other"}), r"speaks protocol None.*this client speaks protocol 1"), (b"\xc1", "cannot be read")],
)
def test_somebody_else(hello: bytes, says: str) -> None:
    with played(lambda connection: connection.send(hello)) as url, pytest.raises(ProtocolError, match=says):
        Client(url, connect_s=60).infer(observation())


@pytest.mark.parametrize(("version", "says"), [("HTTP/1.1", "HTTP status 404"), ("HTTP/1.0", "is no policy server")])
def test_a_web_server(version: str, says: str) -> None:
    class Page(BaseHTTPRequestHandler):
        protocol_version = version

        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(ProtocolError, match=says):
            Client(f"ws://127.0.0.1:{server.server_port}", connect_s=60).infer(observation())
        server.shutdown()


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("what?", "the server says: what"),
        (b"\xc1", "cannot be read"),
        (pack({"id": 2}), "asked 1, the server answered 2"),
        (pack({}), "answered None"),
        (pack({"id": 1}), "reply is not of this protocol"),
        (pack({"id": 1, "server_timing": {"server_ms": "x"}}), "reply is not of this protocol"),
    ],
)
def test_replies_that_are_none(reply: str | bytes, says: str) -> None:
    with played(answering(reply)) as url, pytest.raises(ProtocolError, match=says):
        Client(url).infer(observation())


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next() -> None:
    engine = EchoEngine()
    with running(engine) as server, Client(server.url, timeout_s=0.3) as client:
        client.reset(seed=0)
        session = client.metadata["session"]["name"]
        engine.gate.clear()
        for late in (1, 2):
            with pytest.raises(RequestTimeout, match=r"no answer within 0.3 s"):
                client.infer(observation(late))
        engine.gate.set()
        assert eventually(lambda: len(engine.batches) >= 2)
        client._timeout_s = 60
        reply = client.infer(observation(3))
        assert reply.session == session, "the session has survived"
        assert reply.actions[:2, 0].tolist() == [2, 3], "and remembers what was asked"


def test_a_server_that_takes_nothing_does_not_hold_the_robot() -> None:
    """Its buffers are full, so that the request cannot even be written."""
    leave = threading.Event()

    def handler(connection: ServerConnection) -> None:
        connection.send(pack(HELLO))
        connection.recv_flow_control.acquire()  # the library's own brake: reads no more
        leave.wait(60)
        connection.recv_flow_control.release()

    with played(handler) as url:
        client = Client(url, timeout_s=0.5)
        assert client.metadata
        start = time.perf_counter()
        with pytest.raises((ConnectionLost, RequestTimeout)):
            for _ in range(8):
                client.infer({"x": np.zeros(2**25, np.uint8)})
        assert time.perf_counter() - start < 30
        leave.set()
        client.close()


def test_what_cannot_be_sent_harms_nothing() -> None:
    with running(EchoEngine()) as server, Client(server.url) as client:
        session = client.infer(observation(1)).session
        with pytest.raises(FrameError, match="dtype object"):
            client.infer(observation(1) | {"pose": np.array([None])})
        assert client.infer(observation(2)).session == session


def test_it_comes_back_after_the_server_does() -> None:
    with running(EchoEngine()) as server:
        port = server.port
        client = Client(server.url, connect_s=60)
        first = client.infer(observation(1)).session
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(client.infer, observation(2))
        time.sleep(0.3)
        assert not again.done()
        with running(EchoEngine(), port=port) as server:
            try:
                reply = again.result(60)
            except ConnectionLost:  # it had not noticed yet that the server was gone
                reply = client.infer(observation(2))
            assert reply.session != first and reply.actions[:2, 0].tolist() == [2, 2], "a new session, without memory"
            client.close()


def test_threads_may_share_a_client() -> None:
    with running(EchoEngine()) as server, Client(server.url, timeout_s=60) as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: client.infer(observation(n)).actions[1, 0], range(100)))
    assert answers == list(range(100))


def test_leaving_the_block_ends_the_session_and_a_later_call_begins_another() -> None:
    with running(EchoEngine()) as server:
        with Client(server.url) as client:
            assert len(server.server._sessions) == 1
        assert eventually(lambda: len(server.server._sessions) == 0)
        assert client.infer(observation(1)).actions[1, 0] == 1
        client.close()
        client.close()
