"""Which policy a folder holds, whatever else lies beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .seen import DEMONSTRATIONS

WEIGHT_FILES = frozenset({".safetensors", ".json", ".pt", ".pth", ".ckpt", ".bin"})
BESIDE = ("calibration-", "windows-", "uncertainty.")
"""How files begin that were found out about a policy; they are no part of it."""


def checkpoint_digest(path: str | Path) -> str:
    """SHA-256 of a checkpoint file; of a folder, over names and digests of its weights and configuration files.

    What the policy was trained on, its calibrations, uncertainty and windows are not part of it: knowing more about a
    policy does not make it another.

    Raises:
        FileNotFoundError: there is no such checkpoint, or the folder holds no such file.
    """
    root = Path(path)
    if root.is_file():
        return file_digest(root)
    files = sorted(file for file in root.rglob("*") if _is_part(file) and file.is_file())
    if not files:
        raise FileNotFoundError(
            f"no checkpoint at {root}: expected a file, or a folder with {sorted(WEIGHT_FILES)} files"
        )
    lines = [f"{file_digest(file)}  {file.relative_to(root).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of one file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_part(file: Path) -> bool:
    return file.suffix in WEIGHT_FILES and file.name != DEMONSTRATIONS and not file.name.startswith(BESIDE)
