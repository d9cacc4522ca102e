"""Seeds of the demonstrations that a policy was trained on, kept with its checkpoint.

They name initial states: success on those says less than success on others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from specpolicy.atomic import atomic_path

from .checkpoint import CheckpointError

DEMONSTRATIONS = "demonstrations.json"


def write_seen_seeds(folder: Path, seeds: Iterable[int]) -> None:
    """Write them into a checkpoint's folder, at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / DEMONSTRATIONS) as path:
        path.write_text(json.dumps({"seeds": sorted(set(seeds))}) + "\n", encoding="utf-8")


def read_seen_seeds(folder: Path) -> frozenset[int]:
    """Seeds that a checkpoint was trained on; empty where none are on record, as for demonstrations by people.

    Raises:
        CheckpointError: the record cannot be read.
    """
    path = folder / DEMONSTRATIONS
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(int(seed) for seed in json.loads(path.read_text(encoding="utf-8"))["seeds"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again, or train again") from error
