"""Self-signed certificates, made by OpenSSL where a test needs one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def self_signed(folder: Path, name: str = "IP:127.0.0.1", password: str | None = None) -> tuple[Path, Path]:
    """A certificate for ``name`` and its key, valid for a day, with an elliptic curve since those are quick to make."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the program openssl to make a certificate")
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    encryption = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *encryption,
            "-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=test", "-addext", f"subjectAltName={name}",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key
