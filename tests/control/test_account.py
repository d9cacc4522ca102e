"""What is written down, what is read off it, and how it is shown."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from control_fakes import SPEC, TickEnv, TickPolicy
from rich.console import Console

from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.executors import (
    Asynchronous,
    Blocking,
    Executor,
    Lockstep,
    PredraftConfig,
    PreDrafting,
    RecedingHorizon,
)
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceKind, InferenceResult
from specpolicy.control.latency import Constant
from specpolicy.control.loop import ControlLoop
from specpolicy.control.metrics import measure, seams
from specpolicy.control.trace import EpisodeTrace, StepRecord, TraceError, read_trace, write_trace
from specpolicy.control.viewers import TerminalView
from specpolicy.evaluation.timeline import draw_timeline


def play(executor: Executor, latency_s: float, limit: int = 40, policy: TickPolicy | None = None, **more: Any) -> Any:
    clock = SimulatedLatencyClock(20.0, Constant(latency_s))
    env = TickEnv(limit, succeed_at=limit)
    return ControlLoop(env, policy or TickPolicy(), executor, clock, action_spec=SPEC, **more).run(3, 1)


def test_every_tick_tells_where_its_action_comes_from() -> None:
    trace = play(RecedingHorizon(4), 0.1, limit=12)
    row = trace.ticks[9]
    assert (row.tick, row.inference, row.source, row.queue, row.computing) == (9, 1, "planned", 9, None)
    assert (row.observed_s, row.begun_s, row.ended_s, row.sent_s) == pytest.approx((0.3, 0.3, 0.4, 0.45))
    assert (row.passes, row.age_s) == (8, pytest.approx(0.15))
    assert row.action == pytest.approx((7.0, 10.0, 0.5))
    assert trace.ticks[7].computing == "whole" and trace.ticks[7].source == "rest"
    assert trace.success and trace.return_ == 1.0 and trace.skipped == 0
    each = trace.inferences[1]
    assert (each.kind, each.tick, each.handover, each.evaluations, each.acceptance) == (
        InferenceKind.WHOLE,
        6,
        8,
        80,
        0.75,
    )


def test_an_account_survives_the_disk(tmp_path: Path) -> None:
    trace = play(PreDrafting(RecedingHorizon(4), PredraftConfig(2)), 0.1, guards=Guards(max_age_s=0.2))
    path = tmp_path / "cell" / "3-1.parquet"
    write_trace(trace, path, {"executor": "predrafting"})
    again = read_trace(path)
    assert again == trace and trace.faults["stale"] > 0
    table = pq.read_table(path).to_pydict()
    assert table["executor"] == ["predrafting"] * 40 and table["seed"] == [3] * 40 and table["repeat"] == [1] * 40
    assert table["fault"].count("stale") == trace.faults["stale"]
    assert table["action"][5] == pytest.approx(trace.ticks[5].action)


def test_what_is_no_account_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(TraceError, match="run the episode again"):
        read_trace(path)
    write_trace(play(Lockstep(4), 0.0), path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    with pytest.raises(TraceError):
        read_trace(path)


def test_metrics_of_lockstep() -> None:
    metrics = measure([play(Lockstep(4), 0.1), play(Lockstep(4), 0.1)])
    assert (metrics.episodes, metrics.ticks, metrics.chunks) == (2, 80, 20)
    assert metrics.reaction_ms is not None and metrics.reaction_ms.p50 == pytest.approx(100.0)
    assert metrics.reaction_ms.max == pytest.approx(100.0) and metrics.reaction_ms.n == 20
    assert (metrics.idle, metrics.missed, metrics.stopped) == (0.0, 0.0, 0)
    # of the delta entries an observation jumps by 4 and the tick meant by 1 at a border, the latter alone inside
    assert metrics.border_velocity_jump == pytest.approx(20 * np.hypot(4, 1))
    assert metrics.inner_velocity_jump == pytest.approx(20 * 1.0)
    assert metrics.border_jerk == pytest.approx(20**3 * 4) and metrics.inner_jerk == pytest.approx(0.0)
    assert metrics.jitter_ms is not None and metrics.jitter_ms.max == 0.0
    assert (metrics.passes, metrics.finish_passes, metrics.acceptance) == (8.0, None, 0.75)


def test_metrics_of_held_stale_and_missed_ticks() -> None:
    blocking = measure([play(Blocking(4), 0.15)])  # 3 ticks of 7 stood still; 4 aged 3 to 6 ticks, of which 3 is fresh
    assert blocking.idle == pytest.approx(18 / 40) and blocking.missed == 0.0
    assert blocking.stale == pytest.approx(16 / 22)
    late = measure([play(Asynchronous(4, 4), 0.4)])
    assert late.missed is not None and late.missed > 0
    assert late.faults == {"missed": round(late.missed * 40)}
    assert late.age_ms is not None and late.age_ms.max == pytest.approx(550.0)
    drafted = measure([play(PreDrafting(RecedingHorizon(4), PredraftConfig(2)), 0.1)])
    assert drafted.finish_passes == 2.0 and drafted.finish_ms is not None and drafted.inference_ms is not None
    assert drafted.finish_ms.max == pytest.approx(25.0) and drafted.inference_ms.p50 == pytest.approx(100.0)
    empty = measure([])
    assert (empty.episodes, empty.reaction_ms, empty.idle, empty.border_jerk) == (0, None, None, None)


def test_skipped_ticks_are_missed() -> None:
    trace = play(Lockstep(4), 0.0, limit=4)
    trace.ticks[-1] = replace(trace.ticks[-1], tick=9)
    assert trace.skipped == 6 and measure([trace]).missed == pytest.approx(6 / 10)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_timeline_is_drawn(tmp_path: Path, suffix: str) -> None:
    def spoil(number: int, answer: InferenceResult) -> InferenceResult:
        return InferenceResult(error="boom") if number == 4 else answer

    policy = TickPolicy(spoil=spoil)
    trace = play(PreDrafting(Blocking(4), PredraftConfig(2)), 0.1, policy=policy, guards=Guards(failure="hold"))  # type: ignore[arg-type]
    path = draw_timeline(trace, tmp_path / f"loop{suffix}", "blocking", seconds=2.0)
    content = path.read_bytes()
    assert len(content) > 10_000
    if suffix == ".svg":
        assert {b"#009e73", b"#cc79a7", b"#0072b2", b"#d55e00"} <= set(
            part[:7] for part in content.replace(b"fill: ", b"\nfill: ").split(b"fill: ")
        )


def test_the_terminal_shows_one_line() -> None:
    stream = io.StringIO()
    view = TerminalView("async, fast", Console(file=stream, force_terminal=True, width=120))
    trace = play(Asynchronous(4, 2), 0.3, views=[view])
    assert "async, fast" in stream.getvalue() and "missed" in stream.getvalue()
    line = view.line(trace).plain
    assert "seed 3" in line and "queue" in line and "computing" in line and "\n" not in line
    quiet = io.StringIO()
    play(Asynchronous(4, 2), 0.3, views=[TerminalView("async", Console(file=quiet))])
    assert quiet.getvalue() == ""


class FakeRerun:
    """Stands for the module ``rerun``: remembers what it is told."""

    def __init__(self) -> None:
        self.logged: dict[str, list[Any]] = {}
        self.times: list[tuple[str, float]] = []
        self.recordings: list[tuple[str, bool]] = []
        self.saved: list[str] = []

    def init(self, application: str, *, recording_id: str, spawn: bool) -> None:
        self.recordings.append((recording_id, spawn))

    def save(self, path: str) -> None:
        self.saved.append(path)

    def set_time(self, timeline: str, *, sequence: int | None = None, duration: float | None = None) -> None:
        self.times.append((timeline, float(sequence if sequence is not None else duration or 0.0)))

    def log(self, path: str, value: Any) -> None:
        self.logged.setdefault(path, []).append(value)

    def Scalars(self, value: float) -> float:
        return float(value)

    def TextLog(self, text: str, level: str = "INFO") -> str:
        return text

    def Image(self, image: Any) -> Any:
        return image


def test_rerun_is_told_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from specpolicy.control.viewers import RerunView

    fake = FakeRerun()
    monkeypatch.setitem(__import__("sys").modules, "rerun", fake)
    view = RerunView("async, fast", tmp_path / "runs" / "x.rrd")
    env = TickEnv(20, render_mode="rgb_array")
    clock = SimulatedLatencyClock(20.0, Constant(0.3))
    trace: EpisodeTrace = ControlLoop(
        env, TickPolicy(), PreDrafting(RecedingHorizon(4)), clock, action_spec=SPEC, views=[view]
    ).run(5)
    assert fake.recordings == [("async, fast seed 5.0", False)]
    assert fake.saved == [str(tmp_path / "runs" / "x-seed5-0.rrd")]
    assert [time for name, time in fake.times if name == "tick"] == [float(tick) for tick in range(20)]
    assert fake.logged["action/1"] == pytest.approx([row.action[1] for row in trace.ticks])
    assert len(fake.logged["loop/queue"]) == len(fake.logged["camera"]) == 20
    assert fake.logged["inference/whole/ms"] == pytest.approx([300.0])
    assert fake.logged["inference/whole/acceptance"] == [0.75] and fake.logged["inference/whole/passes"] == [8.0]
    assert fake.logged["loop/outcome"] == ["failure"]
    assert len(fake.logged["loop/age_ms"]) == sum(row.age_s is not None for row in trace.ticks)


def test_a_missing_viewer_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from specpolicy.control.viewers import RerunView

    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    with pytest.raises(ImportError, match=r"specpolicy\[rerun\]"):
        RerunView("x")


# ---- seams: closed forms


def commanded(actions: Any, chunks: list[int | None], delta_dims: tuple[int, ...] = (), rate_hz: float = 10.0) -> Any:
    """A trace of which nothing is known but what was sent, and from which chunk."""
    trace = EpisodeTrace(0, 0, rate_hz, 4, delta_dims=delta_dims)
    for tick, (action, chunk) in enumerate(zip(np.atleast_2d(actions), chunks, strict=True)):
        times = (tick / rate_hz,) * 2
        rest = (None, None, None, None, 0.0, 1, None, None, None)
        trace.ticks.append(StepRecord(tick, *times, "planned", chunk, *rest, tuple(action), 0.0, False))
    return trace


def test_a_sampled_polynomial_has_its_jerk() -> None:
    """x(t) = t³ and −2 t³: jerk 6 and −12 everywhere, third differences being exact, whatever the borders."""
    t = np.arange(12) / 10.0
    found = seams(commanded(np.stack([t**3, -2 * t**3], 1), [0] * 6 + [1] * 6))
    assert found.inner_jerk == pytest.approx([np.hypot(6, 12)] * 6)
    assert found.border_jerk == pytest.approx([np.hypot(6, 12)] * 3)
    velocity = np.diff(np.stack([t**3, -2 * t**3], 1), axis=0) * 10.0
    assert found.border_velocity_jump == pytest.approx([np.linalg.norm(velocity[5] - velocity[4])])


def test_chunks_of_constant_velocity_jump_by_its_difference() -> None:
    """0.5/s, then −1/s from the same place: one jump of 1.5/s, none inside; all jerk is at the border."""
    positions = np.concatenate([0.05 * np.arange(6), 0.25 - 0.1 * np.arange(1, 7)])[:, None]
    found = seams(commanded(positions, [0] * 6 + [1] * 6))
    assert found.border_velocity_jump == pytest.approx([1.5])
    assert found.inner_velocity_jump == pytest.approx([0.0] * 8, abs=1e-9)
    assert found.border_jerk == pytest.approx([150.0, 150.0, 0.0], abs=1e-9)
    assert found.inner_jerk == pytest.approx([0.0] * 6, abs=1e-9)


def test_deltas_are_velocities_and_grippers_beside_them_do_not_count() -> None:
    """The same motion as deltas; the gripper's command closes at the border."""
    deltas = np.array([[0.05, 1.0]] * 6 + [[-0.1, -1.0]] * 6)
    found = seams(commanded(deltas, [0] * 6 + [1] * 6, delta_dims=(0,)))
    assert found.border_velocity_jump == pytest.approx([1.5])
    assert found.inner_velocity_jump == pytest.approx([0.0] * 10, abs=1e-9)
    assert found.border_jerk == pytest.approx([150.0, 150.0], abs=1e-9)


def test_a_gap_interrupts_what_is_differentiated() -> None:
    positions = np.array([0.0, 1.0, 2.0, 50.0, 3.0, 4.0, 5.0])[:, None]
    trace = commanded(positions, [0, 0, 0, None, 1, 1, 1])
    assert seams(trace) == ([], pytest.approx([0.0, 0.0]), [], [])
    del trace.ticks[3]
    assert seams(trace) == ([], pytest.approx([0.0, 0.0]), [], [])
    assert seams(commanded(positions[:1], [0])) == ([], [], [], [])
