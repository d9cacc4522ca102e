"""Clips of episodes side by side, in which each robot pauses for its own inference, in real time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from specpolicy.atomic import atomic_path
from specpolicy.progress import progress_bar

from .panel import draw_panel
from .player import EnvFactory, EpisodePlayer
from .protocols import Account, Policy, Sampler
from .seeding import episode_generator
from .timeline import Beat, Take, duration_s, moments
from .timing import device_of, timed_act

_log = logging.getLogger(__name__)

Pause = float | Callable[[Account], float] | None


def film(
    policy: Policy,
    samplers: Mapping[str, Sampler],
    make_env: EnvFactory,
    path: str | Path,
    *,
    seed: int,
    repeat: int = 0,
    pauses: Mapping[str, Pause] | None = None,
    control_hz: float = 20.0,
    fps: float = 20.0,
    max_steps: int | None = None,
) -> Path | None:
    """Film one episode with each sampler, side by side in one mp4. No harm is done where nothing can be rendered.

    Args:
        policy: whom to ask.
        samplers: by name, from left to right.
        make_env: makes the environment, with ``render_mode="rgb_array"``.
        path: the mp4.
        seed, repeat: which episode; the same for all.
        pauses: for each sampler how long a chunk takes: seconds, or a function of the sampler's account (e.g. passes
            times the time of one); measured while filming where it is not given.
        control_hz: environment steps a second.
        fps: of the clip.
        max_steps: end an episode after so many steps.

    Returns:
        ``path``, or ``None`` after a warning of one line if the environment cannot be filmed here.
    """
    takes: list[Take] = []
    try:
        with progress_bar("filming", total=len(samplers)) as bar:
            for name, sampler in samplers.items():
                bar.describe(f"filming {name}")
                player = EpisodePlayer(make_env, policy.config.observation_horizon, max_steps, capture=True)
                try:
                    takes.append(film_take(policy, sampler, player, name, seed, repeat, (pauses or {}).get(name)))
                finally:
                    player.close()
                bar.advance()
        return write_clip(takes, path, control_hz=control_hz, fps=fps)
    except Exception as error:  # rendering fails in as many ways as there are drivers; an evaluation must not
        _log.warning("no video %s: %s: %s", path, type(error).__name__, " ".join(str(error).split()))
        return None


def film_take(
    policy: Policy,
    sampler: Sampler,
    player: EpisodePlayer,
    name: str,
    seed: int,
    repeat: int = 0,
    pause: Pause = None,
) -> Take:
    """Play one episode and keep its images.

    Args:
        policy, sampler: whom to ask.
        player: with ``capture=True``.
        name: of the sampler, becomes the title.
        seed, repeat: which episode.
        pause: see :func:`film`.
    """
    generator, device = episode_generator(seed, repeat), device_of(policy)
    segment = player.start(seed)
    first, beats, passes, success = segment.frames[-1], [], [], False
    while not segment.ended:
        observation = {key: part[None] for key, part in segment.window.items()}
        nanoseconds, chunk = timed_act(policy, sampler, observation, generator, device)
        passes.append(int(chunk.result.passes[0]))
        waited = nanoseconds / 1e9 if pause is None else pause(chunk.result) if callable(pause) else pause
        segment = player.play(chunk.actions[0])
        beats.append(Beat(waited, segment.frames))
        success |= segment.success
    caption = (
        f"seed {seed} · {np.mean(passes):.1f} passes, {1e3 * np.median([b.pause_s for b in beats]):.0f} ms a chunk"
    )
    return Take(name if sampler.exact else f"{name} (approximate)", caption, first, beats, success)


def write_clip(
    takes: Sequence[Take], path: str | Path, *, control_hz: float = 20.0, fps: float = 20.0, hold_s: float = 1.5
) -> Path:
    """Write takes side by side on one real-time clock; ended ones wait for the longest.

    Args:
        takes: images of one height throughout.
        path: the mp4.
        control_hz: environment steps a second.
        fps: of the clip.
        hold_s: how long the end stands.

    Raises:
        ValueError: no takes.
    """
    if not takes:
        raise ValueError("a clip needs at least one take")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    length = max(duration_s(take, control_hz) for take in takes) + hold_s
    tracks = [moments(take, fps, control_hz, length) for take in takes]
    histories: list[list[str]] = [[] for _ in takes]
    with atomic_path(target) as temporary, closing(_Mp4(temporary, fps)) as movie:
        for together in zip(*tracks, strict=True):
            panels: list[NDArray[np.uint8]] = []
            for take, moment, history in zip(takes, together, histories, strict=True):
                history.append(moment.state)
                panels.append(draw_panel(take, moment, history, math.floor(length * fps) + 1))
            movie.write(np.concatenate(panels, axis=1))
    return target


class _Mp4:
    """An mp4 that grows frame by frame; the first one fixes the size, whose sides must be even."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: Generator[None, NDArray[np.uint8] | None, None] | None = None

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append ``frame``, shape ``(height, width, 3)``."""
        if self._writer is None:
            self._writer = imageio_ffmpeg.write_frames(
                str(self._path), (frame.shape[1], frame.shape[0]), fps=self._fps, codec="libx264", quality=7,
                macro_block_size=2, ffmpeg_log_level="error", output_params=["-f", "mp4", "-movflags", "+faststart"],
            )  # fmt: skip
            self._writer.send(None)
        self._writer.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
