"""Clients that are too many, too large, too slow, silent or gone cost the server little and the others nothing."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from serving_fakes import EchoEngine, Running, eventually, observation, running
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from specpolicy.control.inference import InferenceResult
from specpolicy.serving.batching import Job
from specpolicy.serving.client import Client
from specpolicy.serving.protocol import RequestTooLarge, ServerUnavailable, SettingsError, pack
from specpolicy.serving.server import ServerSettings


@contextmanager
def bare(server: Running) -> Iterator[socket.socket]:
    """A websocket whose every byte is under our control: it answers no pings and reads nothing by itself."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)) as wire:
        key = base64.b64encode(os.urandom(16)).decode()
        wire.sendall(
            f"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert wire.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 101"
        yield wire


def masked(payload: bytes) -> bytes:
    """One binary frame as a client sends it, with the mask zero."""
    return struct.pack(">BBHI", 0x82, 0x80 | 126, len(payload), 0) + payload


def hung_up(wire: socket.socket, within_s: float = 20.0) -> bool:
    """Whether the other side ends the connection."""
    wire.settimeout(within_s)
    try:
        while wire.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def sessions(server: Running) -> int:
    return len(server.server._sessions)


def serves_others(server: Running) -> bool:
    with Client(server.url) as other:
        return bool(other.infer(observation(5)).actions[1, 0] == 5)


def test_our_client_does_not_send_what_is_too_large() -> None:
    with running(EchoEngine(), max_message_bytes=4096) as server, Client(server.url) as client:
        session = client.infer(observation(1)).session
        with pytest.raises(RequestTooLarge, match="this server accepts 4096"):
            client.infer(observation(1) | {"camera": np.zeros(4096, np.uint8)})
        assert client.infer(observation(2)).session == session


def test_a_message_that_is_too_large_closes_its_connection_only() -> None:
    with (
        running(EchoEngine(), max_message_bytes=4096) as server,
        Client(server.url) as other,
        connect(server.url, compression=None, proxy=None) as connection,
    ):
        session = other.infer(observation(1)).session
        connection.recv(20)
        with pytest.raises(ConnectionClosed) as closed:
            connection.send(bytes(5000))
            connection.recv(20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        assert other.infer(observation(1)).session == session


def test_fragments_do_not_get_around_the_limit() -> None:
    with (
        running(EchoEngine(), max_message_bytes=4096) as server,
        connect(server.url, compression=None, proxy=None) as connection,
    ):
        connection.recv(20)
        with pytest.raises(ConnectionClosed) as closed:
            connection.send(bytes(1000) for _ in range(6))
            connection.recv(20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_no_more_connections_than_the_limit() -> None:
    with running(EchoEngine(), max_connections=2) as server, Client(server.url) as one, Client(server.url):
        with pytest.raises(InvalidStatus) as refused, connect(server.url, compression=None, proxy=None):
            pass
        assert refused.value.response.status_code == 503
        with pytest.raises(ServerUnavailable, match="the server is full: it serves 2 connections"):
            Client(server.url, connect_s=3).infer(observation())
        one.close()
        assert serves_others(server), "a place is free again"


def test_a_connection_that_asks_nothing_is_closed_and_comes_back_when_it_does() -> None:
    with running(EchoEngine(), idle_s=0.2) as server, Client(server.url) as client:
        first = client.infer(observation(1)).session
        assert eventually(lambda: sessions(server) == 0)
        assert eventually(lambda: client._connection is not None and not client._connection.open)
        assert client.infer(observation(2)).session != first


def test_half_a_handshake_is_given_up() -> None:
    with running(EchoEngine(), handshake_s=0.3) as server, socket.create_connection(("127.0.0.1", server.port)) as wire:
        wire.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert serves_others(server)
        assert hung_up(wire)


def test_a_crowd_at_the_door_is_cut_off() -> None:
    """They connect and never say who they are; robots that are inside notice nothing, and the door clears by itself."""
    with running(EchoEngine(), max_connections=2, handshake_s=2.0) as server, Client(server.url) as client:
        session = client.infer(observation(1)).session
        crowd = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(30)]
        assert sum(hung_up(wire, within_s=0.05) for wire in crowd) >= 30 - 12
        assert client.infer(observation(1)).session == session
        assert all(hung_up(wire) for wire in crowd)
        assert serves_others(server)
        for wire in crowd:
            wire.close()


def test_a_client_that_vanished_is_noticed() -> None:
    """It opened a connection and answers no pings, as if its cable had been pulled: nothing says that it has gone."""
    with running(EchoEngine(), ping_s=0.3) as server, bare(server) as wire:
        assert eventually(lambda: sessions(server) == 1)
        assert serves_others(server)
        assert eventually(lambda: sessions(server) == 0)
        assert hung_up(wire)


@pytest.mark.parametrize(
    "drip", [lambda frame: frame[:1], lambda frame: frame[:6]], ids=["in the header", "in the payload"]
)
def test_a_message_that_comes_too_slowly_is_not_waited_for(drip: Callable[[bytes], bytes]) -> None:
    with running(EchoEngine(), idle_s=0.5) as server, bare(server) as wire:
        wire.sendall(drip(masked(pack(observation(1)))))
        start = time.perf_counter()
        for _ in range(3):
            assert serves_others(server)
        assert hung_up(wire) and time.perf_counter() - start > 0.4
        assert eventually(lambda: sessions(server) == 0)


class LongWinded(EchoEngine):
    """Its replies are so long that a few of them fill the system's buffers."""

    def answer(self, job: Job) -> InferenceResult:
        answer = super().answer(job)
        assert answer.actions is not None
        return replace(answer, actions=np.resize(answer.actions, (100_000, 3)))


def test_a_client_that_takes_no_replies_is_dropped_and_delays_nobody() -> None:
    engine = LongWinded()
    with running(engine, send_s=0.5, ping_s=60.0) as server, bare(server) as wire:
        wire.sendall(masked(pack(observation(1))) * 40)
        assert eventually(lambda: len(engine.batches) >= 2)
        start, answered = time.perf_counter(), 0
        while sessions(server) > 0 and time.perf_counter() - start < 20:
            assert serves_others(server)
            answered += 1
        assert sessions(server) == 0 and answered >= 2
        assert len(engine.batches) < 40 + answered, "it stopped working for the one who does not listen"


PING = struct.pack(">BBI", 0x89, 0x80 | 125, 0) + bytes(125)


def ping_without_reading(server: Running, wire: socket.socket, most_bytes: int, until_paused: bool = False) -> int:
    """Send pings until the server hangs up, enough was sent, or its write buffer is full; returns the bytes sent."""
    wire.settimeout(5.0)
    port, sent = wire.getsockname()[1], 0
    with suppress(OSError):
        while sent < most_bytes:
            wire.sendall(PING * 500)
            sent += 500 * len(PING)
            if until_paused and any(
                each.paused for each in list(server.server._sessions) if each.remote_address[1] == port
            ):
                break
    return sent


def test_pings_without_reading_are_cut_off() -> None:
    """Each is answered by a pong that waits in the server's memory."""
    with running(EchoEngine(), ping_s=60.0, send_s=60.0) as server, bare(server) as wire:
        assert eventually(lambda: sessions(server) == 1)
        sent = ping_without_reading(server, wire, 64 * 2**20)
        assert sent < 48 * 2**20, "what the system's buffers and the server's limit take, and no more"
        assert eventually(lambda: sessions(server) == 0)
        assert serves_others(server)


def test_silent_clients_with_full_buffers_give_their_places_back() -> None:
    """They fill the server's write buffer and go silent: its own pings and closes would wait without a limit."""
    with running(EchoEngine(), max_connections=3, ping_s=60.0, send_s=0.5) as server, ExitStack() as stack:
        for wire in [stack.enter_context(bare(server)) for _ in range(3)]:
            ping_without_reading(server, wire, 64 * 2**20, until_paused=True)
        assert eventually(lambda: sessions(server) == 0)
        assert serves_others(server)


def test_a_silent_client_with_a_full_buffer_does_not_keep_the_server_from_stopping() -> None:
    with running(EchoEngine(), ping_s=60.0, send_s=30.0, grace_s=1.0) as server, bare(server) as wire:
        assert eventually(lambda: sessions(server) == 1)
        ping_without_reading(server, wire, 64 * 2**20, until_paused=True)
        start = time.perf_counter()
        server.stop()
        assert time.perf_counter() - start < 20


def test_messages_of_empty_maps_do_not_delay_others() -> None:
    hostile = masked_long(msgpack.packb([[{}] * 4000] * 200))
    with running(EchoEngine()) as server, Client(server.url) as client, bare(server) as wire:
        client.infer(observation(1))
        wire.sendall(hostile * 5)
        slowest = max(timed(lambda: client.infer(observation(1))) for _ in range(10))
        assert b"values; send vectors" in wire.recv(4096)
        assert slowest < 2.0


def masked_long(payload: bytes) -> bytes:
    return struct.pack(">BBQI", 0x82, 0x80 | 127, len(payload), 0) + payload


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def test_a_web_page_may_not_connect() -> None:
    """A browser says on whose behalf it connects; otherwise any page could drive the reader's robot."""
    with running(EchoEngine()) as server:
        page = Origin("http://evil.example")
        with pytest.raises(InvalidStatus) as refused, connect(server.url, origin=page, proxy=None):
            pass
        assert refused.value.response.status_code == 403


def test_health_and_other_pages() -> None:
    with running(EchoEngine()) as server:
        answers = {}
        for path in ("/healthz", "/"):
            page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            page.request("GET", path)
            answers[path] = page.getresponse().status
            page.close()
        assert answers == {"/healthz": 200, "/": 426}


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1}, {"port": 70000}, {"max_batch": 0}, {"max_batch": 2.0}, {"idle_s": 0}, {"ping_s": float("inf")},
        {"max_wait_ms": -1}, {"max_wait_ms": float("nan")}, {"send_s": "1"}, {"max_connections": True},
        {"tls_cert": "cert.pem"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=f"^{next(iter(wrong))}"):
        ServerSettings(**wrong)  # type: ignore[arg-type]
