"""Tokens, addresses and certificates."""

from __future__ import annotations

import asyncio
import logging
import os
import urllib.request
from pathlib import Path

import pytest
from certificates import self_signed
from serving_fakes import SECRET, EchoEngine, observation, running
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from specpolicy.serving.auth import TOKEN_VARIABLE, Token, find_token, listening_addresses
from specpolicy.serving.client import Client
from specpolicy.serving.protocol import ProtocolError, ServerUnavailable, SettingsError, Unauthorized
from specpolicy.serving.server import PolicyServer, ServerSettings

TOKEN = Token(SECRET, "test")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["Api-Key"],
        ["Api-Key "],
        [SECRET],
        [f"Basic {SECRET}"],
        [f"Api-Key {SECRET[:-1]}"],
        [f"Api-Key {SECRET}x"],
        [f"Api-Key {SECRET.upper()}"],
        ["Api-Key é\udcff"],
        [f"Api-Key {SECRET}", f"Api-Key {SECRET}"],
    ],
)
def test_only_the_token_is_admitted(headers: list[str]) -> None:
    assert not TOKEN.verify(headers)


@pytest.mark.parametrize("scheme", ["Api-Key", "api-key", "Bearer", " Bearer "])
def test_the_token_is_admitted(scheme: str) -> None:
    assert TOKEN.verify([f"{scheme} {SECRET} "])


def test_the_secret_is_not_kept() -> None:
    assert SECRET not in repr(TOKEN) + repr(vars(TOKEN))


def test_comparison_looks_at_all_of_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing itself cannot be tested steadily; that the comparison made for it is used on equal lengths can."""
    compared: list[tuple[int, int]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr("specpolicy.serving.auth.hmac.compare_digest", compare)
    for header in (f"Api-Key {SECRET}", "Api-Key x", "Nonsense"):
        TOKEN.verify([header])
    assert compared == [(32, 32)] * 3


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    assert find_token(None, {}) is None
    found = find_token(None, {TOKEN_VARIABLE: SECRET + "\n"})
    assert found is not None and found.verify([f"Bearer {SECRET}"])
    (tmp_path / "token").write_text("another-" + SECRET + "\n")
    found = find_token(tmp_path / "token", {TOKEN_VARIABLE: SECRET})
    assert found is not None and found.verify([f"Bearer another-{SECRET}"]) and not found.verify([f"Bearer {SECRET}"])
    for wrong in ("", "short", "has spaces in it, though long", "ümläut" * 5):
        with pytest.raises(SettingsError, match=rf"the environment variable {TOKEN_VARIABLE} must have at least 16"):
            find_token(None, {TOKEN_VARIABLE: wrong})
    with pytest.raises(SettingsError, match="cannot be read"):
        find_token(tmp_path / "absent")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "localhost", "::1"])
def test_loopback_needs_no_token(host: str) -> None:
    assert listening_addresses(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "::ffff:127.0.0.1", "0"])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(SettingsError, match=f"can be reached from other machines.*{TOKEN_VARIABLE}"):
        PolicyServer(EchoEngine(), ServerSettings(host=host))
    assert listening_addresses(host, TOKEN)


@pytest.mark.parametrize("host", ["", "no such host", "256.1.1.1"])
def test_what_is_no_address(host: str) -> None:
    with pytest.raises(SettingsError, match="is no address of this machine"):
        listening_addresses(host, TOKEN)


def test_wrong_tokens_are_turned_away_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(EchoEngine(), TOKEN, host="0.0.0.0") as server:
        url = f"ws://127.0.0.1:{server.port}"
        for wrong in (None, "x" * 30, SECRET + "1"):
            with pytest.raises(Unauthorized, match=r"Authorization: Api-Key <its token>"):
                Client(url, token=wrong, connect_s=60).infer(observation())
        with Client(url, token=SECRET) as client:
            assert client.infer(observation(3)).actions[1, 0] == 3
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=20) as health:
            assert health.read() == b"OK\n", "those who watch over the server need no token, and learn nothing else"
    assert SECRET not in caplog.text and "showed no token, or a wrong one" in caplog.text


def test_a_token_is_wanted_on_loopback_too_where_there_is_one() -> None:
    with running(EchoEngine(), TOKEN) as server:
        with pytest.raises(InvalidStatus), connect(server.url, proxy=None):
            pass
        for scheme in ("Api-Key", "Bearer"):
            headers = {"Authorization": f"{scheme} {SECRET}"}
            with connect(server.url, additional_headers=headers, proxy=None) as connection:
                assert connection.recv(20)


def test_a_round_trip_under_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    settings = {"tls_cert": str(certificate), "tls_key": str(key)}
    with running(EchoEngine(), TOKEN, **settings) as server:
        assert server.url.startswith("wss://")
        with Client(server.url, token=SECRET, ca_file=certificate) as client:
            reply = client.infer(observation(4))
            assert reply.actions[1, 0] == 4
            assert client._connection is not None
            version = client._connection._connection.socket.version()  # type: ignore[attr-defined]
            assert version in ("TLSv1.2", "TLSv1.3")
        with pytest.raises(ProtocolError, match=r"is not trusted.*ca_file"):
            Client(server.url, token=SECRET, connect_s=60).infer(observation())
        with pytest.raises(ServerUnavailable, match="wss://"):
            Client(server.url.replace("wss", "ws"), token=SECRET, connect_s=3).infer(observation())


def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, name="DNS:elsewhere.example")
    tls = {"tls_cert": str(certificate), "tls_key": str(key)}
    with running(EchoEngine(), None, **tls) as server, pytest.raises(ProtocolError, match="a host name that is in it"):
        Client(server.url, ca_file=certificate, connect_s=60).infer(observation())


def test_tls_to_a_server_without() -> None:
    with running(EchoEngine()) as server, pytest.raises(ServerUnavailable, match="has no certificate, use ws://"):
        Client(server.url.replace("ws", "wss"), connect_s=3).infer(observation())


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path / "one")
    _, another = self_signed(tmp_path / "two")
    _, locked = self_signed(tmp_path / "three", password="opensesame")
    (tmp_path / "damaged").write_bytes(os.urandom(100))
    for wrong in (another, locked, tmp_path / "damaged", tmp_path / "absent"):
        with pytest.raises(SettingsError, match="cannot be used"):
            PolicyServer(EchoEngine(), ServerSettings(tls_cert=str(certificate), tls_key=str(wrong)))
    with pytest.raises(SettingsError, match=r"ca_file=.* cannot be used"):
        Client("wss://127.0.0.1:1", ca_file=tmp_path / "damaged")
    PolicyServer(EchoEngine(), ServerSettings(tls_cert=str(certificate), tls_key=str(key)))


def test_a_port_that_is_taken() -> None:
    with running(EchoEngine()) as server:
        taken = PolicyServer(EchoEngine(), ServerSettings(port=server.port))
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1, port {server.port}.*port="):
            asyncio.run(taken.start())
