"""Tell files, checkpoints and source code from others by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path

WEIGHT_FILES = frozenset({".safetensors", ".json", ".pt", ".pth", ".ckpt", ".bin"})
DEMONSTRATIONS = "demonstrations.json"
FORWARD_MODEL = "forward_model.safetensors"
CONVERTED = "openvino-"
"""How files with a network in another format begin."""

BESIDE = (
    DEMONSTRATIONS, FORWARD_MODEL, "acceptance.", "calibration-", "windows-", "x0_variance.", "training.", CONVERTED
)  # fmt: skip
"""How files begin that tell of a policy, or go on with its training; they are no part of it."""


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of one file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_noted: ContextVar[dict[str, str] | None] = ContextVar("noted", default=None)


@contextmanager
def noting_inputs() -> Iterator[dict[str, str]]:
    """Collect what is read meanwhile beside the checkpoint itself: calibrations, windows, draft networks and the like.

    Yields:
        SHA-256 by name, filled by :func:`note_input`.
    """
    noted: dict[str, str] = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def note_input(name: str, digest: str) -> None:
    """Tell :func:`noting_inputs`, if somebody listens, that something was read that decides a sampler's results.

    Args:
        name: of the file or folder, without what differs from machine to machine.
        digest: its SHA-256.
    """
    noted = _noted.get()
    if noted is not None:
        noted[name] = digest


def checkpoint_digest(path: str | Path) -> str:
    """Compute the SHA-256 of a checkpoint file; of a folder, over names and digests of its weights and configuration.

    What the policy was trained on, the state of its training, its calibrations, x0_variance, windows, forward model and
    converted networks are not part of it: knowing more about a policy does not make it another.

    Args:
        path: file or folder.

    Returns:
        The digest in hexadecimal.

    Raises:
        FileNotFoundError: there is no such checkpoint, or the folder holds no such file.
    """
    root = Path(path)
    if root.is_file():
        return file_digest(root)
    files = sorted(
        file
        for file in root.rglob("*")
        if file.suffix in WEIGHT_FILES and not file.name.startswith(BESIDE) and file.is_file()
    )
    if not files:
        raise FileNotFoundError(
            f"no checkpoint at {root}: expected a file, or a folder with {sorted(WEIGHT_FILES)} files"
        )
    lines = [f"{file_digest(file)}  {file.relative_to(root).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_digest(*packages: str) -> str:
    """Compute the SHA-256 of the Python files of packages or modules, shortened to 16 digits.

    Args:
        packages: importable names, such as ``"specpolicy.training"``; of a package, all files below it count.

    Returns:
        The digest; the same wherever the files lie.
    """
    lines = []
    for package in packages:
        file = getattr(import_module(package), "__file__", None)
        if file is None:
            lines.append(f"(no source)  {package}\n")
            continue
        path = Path(file)
        files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
        lines += [f"{file_digest(each)}  {package}/{each.relative_to(path.parent).as_posix()}\n" for each in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
