"""A finished recording, and what there is to tell about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpolicy.differences import differences

from .parts import OtherRecording
from .reading import read_attributes


@dataclass(frozen=True)
class Recorded:
    """A finished recording.

    Attributes:
        path: the file.
        episodes, steps: in it.
        tried: seeds that were attempted.
        failed: those that failed, and why.
        found: it was there before; nothing was recorded now.
        other_software: how the software that recorded it differs from the present one; only where ``found``.
    """

    path: Path
    episodes: int
    steps: int
    tried: int
    failed: Mapping[int, str]
    found: bool = False
    other_software: tuple[str, ...] = ()

    def summary(self) -> str:
        """What was recorded and what was not, in a few lines."""
        there = "were there already" if self.found else "recorded"
        lines = [f"{self.episodes} demonstrations ({self.steps} steps) {there}: {self.path}"]
        reasons = Counter(self.failed.values()).most_common()
        lines += [f"{len(self.failed)} of {self.tried} seeds failed" + (":" if reasons else "")]
        lines += [f"  {number} x {reason}" for reason, number in reasons[:5]]
        if len(reasons) > 5:
            lines.append(f"  {sum(number for _, number in reasons[5:])} for other reasons; see the file's failed_seeds")
        if self.other_software:
            lines += ["It was recorded by other software; overwrite=true records it afresh:", *self.other_software]
        return "\n".join(lines)


def read_recorded(path: Path, recording: Mapping[str, Any], software: Mapping[str, str]) -> Recorded:
    """The finished recording at ``path``.

    Args:
        path: the file.
        recording: source and settings that it must have been recorded with.
        software: the present software; another one is told, not refused.

    Raises:
        OtherRecording: it was recorded with others, or is no recording.
    """
    try:
        attributes = read_attributes(path)
        there = json.loads(str(attributes["recording"]))
    except (OSError, KeyError):
        raise OtherRecording(
            f"{path} is there and was not recorded from an expert; choose another out=, or overwrite=true to replace it"
        ) from None
    lines = differences(there, recording)
    if lines:
        raise OtherRecording(
            f"{path} was recorded with other settings:\n" + "\n".join(lines) + "\n"
            "Choose another out=, or replace it with overwrite=true."
        )
    return Recorded(
        path,
        episodes=there["settings"]["episodes"],
        steps=int(attributes["total"]),
        tried=int(attributes["tried_seeds"]),
        failed={int(seed): why for seed, why in json.loads(str(attributes["failed_seeds"])).items()},
        found=True,
        other_software=tuple(differences(json.loads(str(attributes["software"])), software)),
    )
