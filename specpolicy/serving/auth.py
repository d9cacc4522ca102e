"""Tokens, listening addresses and TLS."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

from specpolicy.serving.protocol import SettingsError

TOKEN_VARIABLE = "SPECPOLICY_TOKEN"
_SHORTEST = 16
_SCHEMES = ("api-key", "bearer")
_HOW_TO_MAKE_ONE = 'python -c "import secrets; print(secrets.token_urlsafe())"'


class Token:
    """A secret shared with the clients; only its digest is kept.

    Raises:
        SettingsError: too short to be a secret, or not printable ASCII without spaces, which headers need.
    """

    def __init__(self, secret: str, source: str) -> None:
        if len(secret) < _SHORTEST or not all("!" <= character <= "~" for character in secret):
            raise SettingsError(
                f"the token in {source} must have at least {_SHORTEST} printable ASCII characters and no spaces; make "
                f"one with {_HOW_TO_MAKE_ONE}"
            )
        self._digest = _digest(secret)

    def verify(self, authorization: Sequence[str]) -> bool:
        """Say whether the header ``Authorization`` is one ``Api-Key`` or ``Bearer`` with this token.

        Takes the same time for every wrong token.

        Args:
            authorization: all values of the header.

        Returns:
            Whether it is.
        """
        if len(authorization) != 1:
            return False
        scheme, _, secret = authorization[0].strip().partition(" ")
        return hmac.compare_digest(_digest(secret.strip()), self._digest) and scheme.lower() in _SCHEMES


def find_token(file: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Token | None:
    """The token in ``file``, else in the environment variable ``SPECPOLICY_TOKEN``; None if there is neither.

    Raises:
        SettingsError: the file cannot be read, or what was found is no token.
    """
    if file is not None:
        try:
            return Token(Path(file).read_text(encoding="utf-8").strip(), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"the token file {file} cannot be read: {error}") from error
    if TOKEN_VARIABLE in environment:
        return Token(environment[TOKEN_VARIABLE].strip(), f"the environment variable {TOKEN_VARIABLE}")
    return None


def listening_addresses(host: str, token: Token | None) -> list[str]:
    """The addresses that ``host`` stands for.

    Raises:
        SettingsError: ``host`` is unknown, or can be reached from other machines and there is no token.
    """
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"host={host!r} is no address of this machine ({error}); 127.0.0.1 is reached from here only, 0.0.0.0 from "
            "everywhere"
        ) from error
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    if token is None and not local(addresses):
        raise SettingsError(
            f"host={host!r} can be reached from other machines, so clients must know a token: put one, such as "
            f"{_HOW_TO_MAKE_ONE} prints, into the environment variable {TOKEN_VARIABLE} or into a file and "
            "token_file=<file>"
        )
    return addresses


def local(addresses: Sequence[str]) -> bool:
    """Whether all of these can be reached from this machine only."""
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def server_context(certificate: str | Path, key: str | Path) -> ssl.SSLContext:
    """What a server needs for ``wss://``: TLS 1.2 or newer.

    Args:
        certificate: PEM file, followed by those of the authorities between it and the root, if any.
        key: PEM file with the private key, not encrypted.

    Raises:
        SettingsError: a file is missing, damaged or encrypted, or the key is another certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password of our own an encrypted key would make OpenSSL ask the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"tls_cert={certificate} and tls_key={key} cannot be used ({error}); expected a certificate and its "
            "unencrypted private key, both PEM"
        ) from error
    return context


def client_context(ca_file: str | Path | None) -> ssl.SSLContext:
    """What a client needs: the system's authorities, or the one in ``ca_file`` (a self-signed certificate is its own).

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"ca_file={ca_file} cannot be used ({error}); expected a PEM file") from error
