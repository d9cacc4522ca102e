"""An environment with openpi's client, which wants an older numpy than this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# typing_extensions is imported by this version without being among its requirements
REQUIREMENTS = ["openpi-client==0.1.2", "typing_extensions>=4"]
FOLDER = Path(__file__).parents[2] / ".venv-openpi"


def openpi_python() -> Path:
    """Its interpreter, made once and kept in ``.venv-openpi``; skips the test if there is no package index."""
    python, finished = FOLDER / "bin" / "python", FOLDER / ".installed"
    wanted = "\n".join([*REQUIREMENTS, sys.version])
    if finished.is_file() and finished.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    (FOLDER / ".gitignore").write_text("*\n")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--prefer-binary"]
    done = subprocess.run([*pip, *REQUIREMENTS], capture_output=True, text=True)
    if done.returncode != 0:
        unreachable = ("Retrying (", "Temporary failure in name resolution", "Failed to establish a new connection")
        if any(sign in done.stderr for sign in unreachable):
            pytest.skip("openpi-client could not be installed: no package index can be reached")
        raise RuntimeError(f"openpi-client could not be installed:\n{done.stderr}")
    finished.write_text(wanted)
    return python
