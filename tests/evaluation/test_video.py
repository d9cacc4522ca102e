"""Clips in real time."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from evaluation_fakes import FakePolicy, FakeSampler, ReachEnv

from specpolicy.evaluation.video import (
    EpisodeRecording,
    RecordedChunk,
    VideoFrame,
    draw_panel,
    duration_s,
    record_episode,
    record_video,
    video_frames,
    write_video,
)


def shade(value: int) -> Any:
    return np.full((48, 64, 3), value, np.uint8)


RECORDING = EpisodeRecording(
    "ddpm", "seed 1", shade(0), [RecordedChunk(0.2, [shade(1), shade(2)]), RecordedChunk(0.1, [shade(3)])], success=True
)


def test_pauses_and_motion_share_one_clock() -> None:
    shown = [(int(m.frame[0, 0, 0]), m.state) for m in video_frames(RECORDING, fps=10, control_hz=10, length_s=0.9)]
    assert shown == [
        (0, "thinking"),
        (0, "thinking"),
        (0, "moving"),  # 0.2 s: the first step begins, its image comes when it has been made
        (1, "moving"),
        (2, "thinking"),
        (2, "moving"),
        (3, "done"),
        (3, "done"),
        (3, "done"),
        (3, "done"),
    ]
    assert duration_s(RECORDING, control_hz=10) == pytest.approx(0.6)


def test_the_clock_is_the_recordings_own_and_stops_with_it() -> None:
    times = [shown.time_s for shown in video_frames(RECORDING, fps=20, control_hz=10, length_s=1.0)]
    assert times[:3] == pytest.approx([0, 0.05, 0.1])
    assert times[-1] == pytest.approx(0.6)
    assert len(times) == 21


def test_pauses_shorter_than_a_frame_add_up() -> None:
    recording = EpisodeRecording(
        "fast", "", shade(0), [RecordedChunk(0.03, [shade(i)]) for i in range(1, 11)], success=False
    )
    shown = [int(m.frame[0, 0, 0]) for m in video_frames(recording, fps=10, control_hz=10, length_s=1.3)]
    assert shown[-1] == 10
    assert shown[-2] == 9
    assert len(shown) == 14  # 10 × (0.03 + 0.1) s


@pytest.mark.parametrize(("fps", "control_hz", "pause"), [(0, 10, 0.1), (10, -1, 0.1), (10, 10, -0.1)])
def test_impossible_clocks_are_refused(fps: float, control_hz: float, pause: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        list(video_frames(EpisodeRecording("", "", shade(0), [RecordedChunk(pause, [])], False), fps, control_hz, 1))


def test_panels_show_image_state_and_strip() -> None:
    panel = draw_panel(RECORDING, VideoFrame(shade(77), "thinking", 0.1), ["thinking", "moving"], 10)
    assert panel.shape[0] % 2 == panel.shape[1] % 2 == 0
    assert panel.shape[1] >= 320
    assert np.all(panel[60:200, 20:300] == 77)
    colors = {tuple(color) for color in panel[-60:].reshape(-1, 3).tolist()}
    assert {(213, 94, 0), (0, 114, 178)} <= colors
    done = draw_panel(RECORDING, VideoFrame(shade(77), "done", 0.6), ["done"] * 10, 10)
    assert not np.array_equal(panel, done)


def test_an_episode_is_recorded_with_the_pauses_asked_for() -> None:
    def recording(**more: Any) -> EpisodeRecording:
        env = ReachEnv(render_mode="rgb_array")
        return record_episode(FakePolicy(), FakeSampler(passes=25), env, "free", seed=3, **more)

    fixed = recording(pause=0.5)
    assert {chunk.pause_s for chunk in fixed.chunks} == {0.5}
    assert fixed.success
    assert fixed.caption == "seed 3 · 25.0 NFE, 500 ms a chunk"
    by_nfe = recording(pause=lambda inference: 0.01 * inference.passes)
    assert {chunk.pause_s for chunk in by_nfe.chunks} == {0.25}
    measured = recording()
    assert all(0 < chunk.pause_s < 1 for chunk in measured.chunks)
    assert all(1 <= len(chunk.frames) <= 4 for chunk in measured.chunks)


def test_a_video_plays_as_long_as_the_slowest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "clip.mp4"
    make_env = partial(ReachEnv, render_mode="rgb_array")
    samplers = {"ddpm": FakeSampler(passes=100), "free": FakeSampler(passes=12)}
    began = time.monotonic()
    assert record_video(FakePolicy(), samplers, make_env, path, seed=3, pauses={"ddpm": 0.6, "free": 0.1}) == path
    assert time.monotonic() - began < 30
    reader = imageio_ffmpeg.read_frames(str(path))
    meta: dict[str, Any] = next(reader)
    count = sum(1 for _ in reader)
    assert meta["fps"] == 20
    assert meta["codec"] == "h264"
    assert meta["size"][0] > 640
    slow = record_episode(FakePolicy(), samplers["ddpm"], make_env(), "ddpm", seed=3, pause=0.6)
    assert count == pytest.approx(20 * (duration_s(slow, 20) + 1.5), abs=2)


@pytest.mark.parametrize("mode", [None, "human"])
def test_where_nothing_can_be_rendered_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str | None
) -> None:
    class Blind(ReachEnv):
        def render(self) -> Any:
            if mode is None:
                return None
            raise OSError("no display:\nnothing to draw on")

    with caplog.at_level(logging.WARNING):
        assert record_video(FakePolicy(), {"free": FakeSampler()}, Blind, tmp_path / "clip.mp4", seed=0) is None
    (message,) = caplog.messages
    assert message.startswith("no video ")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_video_needs_a_recording(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one recording"):
        write_video([], tmp_path / "clip.mp4")
