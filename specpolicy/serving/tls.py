"""Encryption by certificate files."""

from __future__ import annotations

import ssl
from pathlib import Path

from .errors import SettingsError


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
