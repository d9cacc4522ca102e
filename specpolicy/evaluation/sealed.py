"""Sealed seeds: initial states on which nothing is chosen, and the record of when they were opened.

Whoever tunes on the seeds that a result is quoted from, quotes the luck of the tuning with it. The block
:data:`~specpolicy.config.SEALED_SEEDS` is refused wherever something is developed; ``specpolicy evaluate seeds=sealed``
opens it for a checkpoint that is final. The first checkpoint of a task that it was opened for is the only one: a better
one that is found afterwards was found with knowledge of these seeds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from specpolicy.config import SEALED_SEEDS, is_sealed
from specpolicy.evaluation.comparison import Comparison
from specpolicy.evaluation.manifest import written
from specpolicy.utils.digests import checkpoint_digest

RECORD = "sealed_seeds.json"


class SealedSeedsError(ValueError):
    """Sealed seeds cannot be opened: they were, for another checkpoint, or their record is damaged."""


def open_sealed_seeds(comparisons: Mapping[str, Comparison], out: Path) -> list[dict[str, Any]]:
    """Record in ``out`` that sealed seeds are opened, before the first episode; does nothing for development seeds.

    Going on with an interrupted run opens nothing anew. More samplers of the same checkpoint, or more of the seeds, are
    recorded as a further use.

    Args:
        comparisons: by task.
        out: the folder of the results; the record is ``sealed_seeds.json`` in it.

    Returns:
        All uses so far, oldest first.

    Raises:
        SealedSeedsError: a task's seeds were opened for another checkpoint, or the record cannot be read.
        ResultsError: the record cannot be written.
    """
    uses = read_uses(out)
    before = len(uses)
    for task, comparison in comparisons.items():
        if not any(map(is_sealed, comparison.seeds)):
            continue
        digest = checkpoint_digest(comparison.checkpoint)
        earlier = [each for each in uses if each["task"] == task]
        if other := next((each for each in earlier if each["checkpoint_sha256"] != digest), None):
            raise SealedSeedsError(
                f"{task}: the sealed seeds were opened on {other['time_utc'][:10]} for another checkpoint "
                f"({other['checkpoint_sha256'][:12]}), so they are no secret to this one; compare it on development "
                "seeds, or give out= of a study that does not know these results"
            )
        use = {
            "task": task,
            "checkpoint_sha256": digest,
            "seeds": [min(comparison.seeds), max(comparison.seeds) + 1],
            "repeats": dict(comparison.repeats),
            "margin": comparison.margin,
        }
        if not any(use.items() <= each.items() for each in earlier):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            uses.append({**use, "time_utc": now, "command": [Path(sys.argv[0]).name, *sys.argv[1:]]})
    if len(uses) > before:
        content = {"sealed": [SEALED_SEEDS.start, SEALED_SEEDS.stop], "uses": uses}
        out.mkdir(parents=True, exist_ok=True)
        with written(out / RECORD) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return uses


def read_uses(out: Path) -> list[dict[str, Any]]:
    """Read the record of uses; empty where nothing was opened.

    Args:
        out: the folder that it is in.

    Raises:
        SealedSeedsError: it is damaged.
    """
    path = out / RECORD
    if not path.exists():
        return []
    try:
        uses = json.loads(path.read_text(encoding="utf-8"))["uses"]
        texts = [each[name] for each in uses for name in ("task", "checkpoint_sha256", "time_utc")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("names and digests are texts")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SealedSeedsError(
            f"{path} is damaged ({error}); restore it, it says what sealed seeds were used for"
        ) from error
    return list(uses)
