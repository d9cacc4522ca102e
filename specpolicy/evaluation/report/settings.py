"""What a reader can choose about a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ReportSettings:
    """Choices that change the page, not the results.

    Attributes:
        reference: the sampler that others are compared with; see :func:`read_folder`.
        videos: show clips, and film them where they are missing.
        film: the sampler to film; by default the one that the verdict names first.
        checkpoint: where the policy is, if it has moved since the episodes were run.
        device: where the policy computes while it is filmed.
        control_hz: control rate of a task's environment, None where it is not known; tells which samplers keep up.
    """

    reference: str | None = None
    videos: bool = True
    film: str | None = None
    checkpoint: str | None = None
    device: str = "cpu"
    control_hz: Callable[[str], float | None] = lambda task: None
