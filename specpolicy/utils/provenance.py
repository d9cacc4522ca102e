"""Where numbers come from: software, revision of the code, checkpoint, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from specpolicy.utils.digests import checkpoint_digest

PACKAGES = (
    "specpolicy",
    "torch",
    "numpy",
    "scipy",
    "diffusers",
    "gymnasium",
    "mujoco",
    "robosuite",
    "gym-pusht",
    "pymunk",
    "pyarrow",
    "matplotlib",
)


def collect_provenance(
    checkpoint: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    packages: Sequence[str] = PACKAGES,
) -> dict[str, Any]:
    """Collect what a reader needs to judge or repeat a run, as plain JSON types.

    Args:
        checkpoint: file or folder of the policy.
        seeds: the seeds asked for.
        device: where the policy computes.
        packages: distributions whose versions are noted, where installed.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],  # where the program lies says nothing to others
        "python": platform.python_version(),
        "checkpoint": None
        if checkpoint is None
        else {"path": str(checkpoint), "sha256": checkpoint_digest(checkpoint)},
        "seeds": None if seeds is None else list(seeds),
        **software_and_machine(device, packages),
    }


def software_and_machine(device: torch.device | str = "cpu", packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Collect ``packages``, ``git`` and ``machine``, for what is stored beside a checkpoint; arguments as above."""
    return {"packages": package_versions(packages), "git": git_revision(), "machine": machine(device)}


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Look up the versions of those packages that are installed.

    Args:
        packages: names of distributions.
    """
    versions: dict[str, str] = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_revision(file: str | Path = __file__) -> dict[str, Any] | None:
    """Look up ``{"revision": …, "dirty": …}`` of the repository that tracks a file.

    Args:
        file: by default one of this package.

    Returns:
        None if no repository does.
    """
    path = Path(file).resolve()
    # An installed copy may lie inside a repository that has nothing to do with it: it must be tracked there.
    if _git(path.parent, "ls-files", "--error-unmatch", path.name) is None:
        return None
    revision = _git(path.parent, "rev-parse", "HEAD")
    status = _git(path.parent, "status", "--porcelain", "--untracked-files=no")
    return None if revision is None else {"revision": revision, "dirty": status != ""}


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Describe the machine: CPU model, cores usable by this process, load, torch's threads, GPU.

    Args:
        device: where the policy computes.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    used = torch.device(device)
    return {
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch_threads": torch.get_num_threads(),
        "device": str(used),
        "gpu": torch.cuda.get_device_name(used) if used.type == "cuda" else None,
        "cuda": torch.version.cuda if used.type == "cuda" else None,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_model() -> str:
    """Look up the processor's name, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
