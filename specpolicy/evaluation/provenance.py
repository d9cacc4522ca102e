"""Where numbers come from: software, revision, checkpoint, machine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from specpolicy.utils.digests import checkpoint_digest
from specpolicy.utils.machine import PACKAGES, git_revision, machine, package_versions


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
        "packages": package_versions(packages),
        "git": git_revision(),
        "checkpoint": None
        if checkpoint is None
        else {"path": str(checkpoint), "sha256": checkpoint_digest(checkpoint)},
        "machine": machine(device),
        "seeds": None if seeds is None else list(seeds),
    }
