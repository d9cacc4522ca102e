"""Which software makes demonstrations: another one may make others from the same seeds."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "mujoco", "robosuite", "gymnasium")


def software_of(function: Callable[..., Any]) -> dict[str, str]:
    """Versions of the simulator's packages, and as ``code`` the SHA-256 of the source of ``function``'s own package.

    Args:
        function: may be a ``functools.partial``. If it lives in a package, all of the package's Python files count, in
            the order of their names; if in a single file, that file.
    """
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__module__", type(function).__module__)
    return {"code": _digest(name), **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _digest(module: str) -> str:
    top = importlib.import_module(module.partition(".")[0])
    if not getattr(top, "__file__", None):
        return "(no source)"
    path = Path(str(top.__file__))
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    lines = [f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.relative_to(path.parent)}\n" for each in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
