"""Videos of episodes side by side in real time, in which each robot waits for its own inference."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import Lockstep
from specpolicy.control.inference import PolicyRunner
from specpolicy.control.latency import Measured
from specpolicy.control.loop import ControlSetup, run_episode
from specpolicy.control.trace import InferenceRecord
from specpolicy.control.viewers import FrameRecorder
from specpolicy.policies.protocols import ChunkPolicy, ChunkSampler, reduced_precision
from specpolicy.rollout.env_worker import EnvFactory
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar

_BACKGROUND, _INK, _FAINT = (250, 250, 250), (20, 20, 20), (110, 110, 110)
_STATE_COLORS = {"thinking": (213, 94, 0), "moving": (0, 114, 178), "done": (225, 225, 225)}
_SUCCESS, _FAILURE = (0, 130, 90), (170, 30, 30)
_MARGIN, _HEADER, _FOOTER, _MIN_WIDTH = 8, 50, 50, 320


def draw_panel(
    recording: EpisodeRecording, shown: VideoFrame, history: Sequence[str], length: int
) -> NDArray[np.uint8]:
    """Draw one recording at one instant.

    Args:
        recording: whose title and caption to write.
        shown: the image, and what the robot does.
        history: states at every tick up to now, drawn as a strip.
        length: ticks of the whole video, the strip's full width.

    Returns:
        An image with sides of even length, at least 320 pixels wide.
    """
    scale = max(1, -(-_MIN_WIDTH // shown.frame.shape[1]))  # small images grow by whole pixels
    frame = np.repeat(np.repeat(shown.frame, scale, axis=0), scale, axis=1)
    height, width = frame.shape[:2]
    panel = Image.new("RGB", (_even(width + 2 * _MARGIN), _even(height + _HEADER + _FOOTER)), _BACKGROUND)
    panel.paste(Image.fromarray(frame), (_MARGIN, _HEADER))
    draw = ImageDraw.Draw(panel)
    draw.text((_MARGIN, 6), recording.title, fill=_INK, font=_font(18, bold=True))
    draw.text((_MARGIN, 29), recording.caption, fill=_FAINT, font=_font(12))
    _strip(draw, history, length, _MARGIN, _HEADER + height + 6, width)
    words, color = _status(recording, shown)
    baseline = _HEADER + height + 23
    draw.text((_MARGIN, baseline), words, fill=color, font=_font(15, bold=True))
    draw.text((_MARGIN + width, baseline), f"{shown.time_s:.1f} s", fill=_INK, font=_font(15), anchor="ra")
    return np.asarray(panel, dtype=np.uint8)


def _status(recording: EpisodeRecording, shown: VideoFrame) -> tuple[str, tuple[int, int, int]]:
    if shown.state == "done":
        return ("success", _SUCCESS) if recording.success else ("failure", _FAILURE)
    return shown.state, _STATE_COLORS[shown.state]


def _strip(draw: ImageDraw.ImageDraw, history: Sequence[str], length: int, left: int, top: int, width: int) -> None:
    draw.rectangle((left, top, left + width - 1, top + 9), fill=_STATE_COLORS["done"])
    for tick, state in enumerate(history):
        if state != "done":
            from_x, to_x = left + tick * width / length, left + (tick + 1) * width / length
            draw.rectangle(
                (round(from_x), top, max(round(from_x), round(to_x) - 1), top + 9), fill=_STATE_COLORS[state]
            )


@lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _even(length: int) -> int:
    return length + length % 2


@dataclass(frozen=True)
class RecordedChunk:
    """A pause in which the robot waits for its policy, then the motion that follows.

    Attributes:
        pause_s: seconds the robot stands still.
        frames: images after each environment step, each ``(height, width, 3)`` uint8.
    """

    pause_s: float
    frames: list[NDArray[np.uint8]]


@dataclass(frozen=True)
class EpisodeRecording:
    """The images of one episode.

    Attributes:
        title: in large letters, e.g. the sampler.
        caption: below it, e.g. seed and NFE.
        first: image after the reset.
        chunks: what followed.
        success: how it ended.
    """

    title: str
    caption: str
    first: NDArray[np.uint8]
    chunks: list[RecordedChunk]
    success: bool


@dataclass(frozen=True)
class VideoFrame:
    """What a recording shows at one instant.

    Attributes:
        frame: the image.
        state: ``"thinking"``, ``"moving"`` or ``"done"``.
        time_s: the recording's own clock; stands still once the episode has ended.
    """

    frame: NDArray[np.uint8]
    state: str
    time_s: float


def duration_s(recording: EpisodeRecording, control_hz: float) -> float:
    """Compute the seconds from reset to end, pauses included.

    Args:
        recording: the episode.
        control_hz: environment steps a second.
    """
    return sum(chunk.pause_s + len(chunk.frames) / control_hz for chunk in recording.chunks)


def video_frames(recording: EpisodeRecording, fps: float, control_hz: float, length_s: float) -> Iterator[VideoFrame]:
    """Play a recording in real time.

    During a pause the last image stands; the image after the ``n``-th step of a motion appears ``n / control_hz``
    after its pause. Once the episode has ended its last image stays.

    Args:
        recording: what to play.
        fps: frames a second, positive.
        control_hz: environment steps a second, positive.
        length_s: of the whole video, in seconds.

    Yields:
        A frame for each instant.

    Raises:
        ValueError: a rate that is not positive, or a negative pause.
    """
    if fps <= 0 or control_hz <= 0 or any(chunk.pause_s < 0 for chunk in recording.chunks):
        raise ValueError("fps and control_hz must be positive, and pauses not negative")
    edges = _edges(recording, control_hz)
    end = duration_s(recording, control_hz)
    current = 0
    for tick in range(math.floor(length_s * fps + 1e-9) + 1):
        now = tick / fps
        while current + 1 < len(edges) and edges[current + 1][0] <= now + 1e-9:
            current += 1
        _, frame, state = edges[current]
        yield VideoFrame(frame, state, min(now, end))


def _edges(recording: EpisodeRecording, control_hz: float) -> Sequence[tuple[float, NDArray[np.uint8], str]]:
    """``(from when, image, state)`` in the order of time."""
    now, frame = 0.0, recording.first
    edges: list[tuple[float, NDArray[np.uint8], str]] = []
    for chunk in recording.chunks:
        edges.append((now, frame, "thinking"))
        now += chunk.pause_s
        edges.append((now, frame, "moving"))
        for step, frame in enumerate(chunk.frames, start=1):
            edges.append((now + step / control_hz, frame, "moving"))
        now += len(chunk.frames) / control_hz
    edges.append((now, frame, "done"))
    return edges


_log = logging.getLogger(__name__)

_FPS, _END_S = 20.0, 1.5  # frames a second, and how long the end stands

Pause = float | Callable[[InferenceRecord], float] | None


def record_video(
    policy: ChunkPolicy,
    samplers: Mapping[str, ChunkSampler],
    make_env: EnvFactory,
    path: str | Path,
    *,
    seed: int,
    pauses: Mapping[str, Pause] | None = None,
    control_hz: float = 20.0,
) -> Path | None:
    """Record one episode with each sampler, side by side in one mp4; warn where nothing can be rendered.

    Args:
        policy: whom to ask.
        samplers: by name, from left to right.
        make_env: makes the environment, with ``render_mode="rgb_array"``.
        path: the mp4.
        seed: of the initial state; the same for all.
        pauses: for each sampler how long a chunk recordings: seconds, or a function of the inference's record (e.g. its
            network evaluations times the time of one); measured while recording where it is not given.
        control_hz: environment steps a second.

    Returns:
        ``path``, or ``None`` after a warning of one line if the environment cannot be rendered here.
    """
    recordings: list[EpisodeRecording] = []
    try:
        with progress_bar("recording", total=len(samplers)) as bar:
            for name, sampler in samplers.items():
                bar.describe(f"recording {name}")
                pause = (pauses or {}).get(name)
                with closing(make_env()) as env:
                    recordings.append(record_episode(policy, sampler, env, name, seed, pause))
                bar.advance()
        return write_video(recordings, path, control_hz)
    except Exception as error:  # rendering fails in as many ways as there are drivers; an evaluation must not
        _log.warning("no video %s: %s: %s", path, type(error).__name__, " ".join(str(error).split()))
        return None


def record_episode(
    policy: ChunkPolicy,
    sampler: ChunkSampler,
    env: gymnasium.Env[Any, Any],
    name: str,
    seed: int,
    pause: Pause = None,
    max_steps: int | None = None,
) -> EpisodeRecording:
    """Play one episode and keep its images.

    Args:
        policy: whom to ask.
        sampler: whom to ask it with.
        env: with ``render_mode="rgb_array"``.
        name: of the sampler, becomes the title.
        seed: of the initial state.
        pause: see :func:`record_video`.
        max_steps: end the episode after so many steps.
    """
    frames = FrameRecorder()
    clock = SimulatedLatencyClock(latency=Measured())
    executor = Lockstep(policy.config.n_action_steps)
    setup = ControlSetup(
        env, executor, clock, policy.config.n_obs_steps, views=(frames,), max_ticks=max_steps, success_required=True
    )
    trace = run_episode(setup, PolicyRunner(policy, sampler), seed)
    first, *images = frames.frames
    chunks, nfe = [], []
    for inference in trace.inferences:
        measured_s = (inference.ended_s or 0.0) - inference.begun_s
        waited = measured_s if pause is None else pause(inference) if callable(pause) else pause
        moved = [image for image, row in zip(images, trace.ticks, strict=True) if row.inference == inference.number]
        chunks.append(RecordedChunk(waited, moved))
        nfe.append(inference.passes or 0)
    caption = (
        f"seed {seed} · {np.mean(nfe):.1f} NFE, {1e3 * np.median([chunk.pause_s for chunk in chunks]):.0f} ms a chunk"
    )
    precision = reduced_precision(sampler)
    marks = ", ".join(
        filter(None, ["" if sampler.exact else "approximate", f"{precision} network" if precision else ""])
    )
    return EpisodeRecording(f"{name} ({marks})" if marks else name, caption, first, chunks, trace.success)


def write_video(recordings: Sequence[EpisodeRecording], path: str | Path, control_hz: float = 20.0) -> Path:
    """Write recordings side by side on one real-time clock; ended ones wait for the longest.

    Args:
        recordings: images of one height throughout.
        path: the mp4.
        control_hz: environment steps a second.

    Raises:
        ValueError: no recordings.
    """
    if not recordings:
        raise ValueError("a video needs at least one recording")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    length = max(duration_s(recording, control_hz) for recording in recordings) + _END_S
    tracks = [video_frames(recording, _FPS, control_hz, length) for recording in recordings]
    histories: list[list[str]] = [[] for _ in recordings]
    with atomic_path(target) as temporary, closing(_Mp4(temporary)) as movie:
        for together in zip(*tracks, strict=True):
            panels: list[NDArray[np.uint8]] = []
            for recording, shown, history in zip(recordings, together, histories, strict=True):
                history.append(shown.state)
                panels.append(draw_panel(recording, shown, history, math.floor(length * _FPS) + 1))
            movie.write(np.concatenate(panels, axis=1))
    return target


class _Mp4:
    """An mp4 that grows frame by frame; the first one fixes the size, whose sides must be even."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Generator[None, NDArray[np.uint8] | None, None] | None = None

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append ``frame``, shape ``(height, width, 3)``."""
        if self._writer is None:
            self._writer = imageio_ffmpeg.write_frames(
                str(self._path), (frame.shape[1], frame.shape[0]), fps=_FPS, codec="libx264", quality=7,
                macro_block_size=2, ffmpeg_log_level="error", output_params=["-f", "mp4", "-movflags", "+faststart"],
            )  # fmt: skip
            self._writer.send(None)
        self._writer.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
