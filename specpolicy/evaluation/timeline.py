"""Pauses and motion on one clock: which frame to show when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Beat:
    """A pause in which the robot waits for its policy, then the motion that follows.

    Attributes:
        pause_s: seconds the robot stands still.
        frames: images after each environment step, each ``(height, width, 3)`` uint8.
    """

    pause_s: float
    frames: list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Take:
    """One filmed episode.

    Attributes:
        title: in large letters, e.g. the sampler.
        caption: below it, e.g. seed and passes.
        first: image after the reset.
        beats: what followed.
        success: how it ended.
    """

    title: str
    caption: str
    first: NDArray[np.uint8]
    beats: list[Beat]
    success: bool


@dataclass(frozen=True)
class Moment:
    """What a take shows at one instant.

    Attributes:
        frame: the image.
        state: ``"thinking"``, ``"moving"`` or ``"done"``.
        time_s: the take's own clock; stands still once the episode has ended.
    """

    frame: NDArray[np.uint8]
    state: str
    time_s: float


def duration_s(take: Take, control_hz: float) -> float:
    """Seconds from reset to end, pauses included, at ``control_hz`` environment steps a second."""
    return sum(beat.pause_s + len(beat.frames) / control_hz for beat in take.beats)


def moments(take: Take, fps: float, control_hz: float, length_s: float) -> Iterator[Moment]:
    """The take in real time, at ``fps`` moments a second over ``length_s`` seconds.

    During a pause the last image stands; the image after the ``n``-th step of a motion appears ``n / control_hz``
    after its pause. Once the episode has ended its last image stays.

    Raises:
        ValueError: a rate that is not positive, or a negative pause.
    """
    if fps <= 0 or control_hz <= 0 or any(beat.pause_s < 0 for beat in take.beats):
        raise ValueError("fps and control_hz must be positive, and pauses not negative")
    edges = _edges(take, control_hz)
    end = duration_s(take, control_hz)
    current = 0
    for tick in range(math.floor(length_s * fps + 1e-9) + 1):
        now = tick / fps
        while current + 1 < len(edges) and edges[current + 1][0] <= now + 1e-9:
            current += 1
        _, frame, state = edges[current]
        yield Moment(frame, state, min(now, end))


def _edges(take: Take, control_hz: float) -> Sequence[tuple[float, NDArray[np.uint8], str]]:
    """``(from when, image, state)`` in the order of time."""
    now, frame = 0.0, take.first
    edges: list[tuple[float, NDArray[np.uint8], str]] = []
    for beat in take.beats:
        edges.append((now, frame, "thinking"))
        now += beat.pause_s
        edges.append((now, frame, "moving"))
        for step, frame in enumerate(beat.frames, start=1):
            edges.append((now + step / control_hz, frame, "moving"))
        now += len(beat.frames) / control_hz
    edges.append((now, frame, "done"))
    return edges
