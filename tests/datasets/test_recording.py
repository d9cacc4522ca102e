"""Recording with a fake expert: the same file whatever happens on the way, and no file where one would be wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_expert import FakeEnv, FakeExpert, no_env, record

from specpolicy.datasets.expert import ExpertWorker
from specpolicy.datasets.record import (
    OtherRecording,
    RecordingError,
    RecordingSettings,
    attempts,
    record_demonstrations,
)
from specpolicy.datasets.robomimic import read_attributes, read_episodes
from specpolicy.utils.files import FolderInUse, FolderLock


@pytest.fixture
def expert(tmp_path: Path) -> FakeExpert:
    return FakeExpert(tmp_path / "log", failing=(1, 4), raising=(5,))


def test_the_first_successes_are_recorded(tmp_path: Path, expert: FakeExpert) -> None:
    path = tmp_path / "d.hdf5"
    recorded = record(path, expert)
    assert [episode.attributes["seed"] for episode in read_episodes(path)] == [0, 2, 3, 6, 7, 8]
    assert (recorded.episodes, recorded.tried, recorded.steps) == (6, 9, 6 * 20 + 26)
    assert recorded.failed[1] == "let go of it" and "ZeroDivisionError: no way (fake_expert.py" in recorded.failed[5]
    assert "3 of 9 seeds failed" in recorded.summary() and "2 x let go of it" in recorded.summary()
    attributes = read_attributes(path)
    assert attributes["tried_seeds"] == 9 and list(json.loads(str(attributes["failed_seeds"]))) == ["1", "4", "5"]
    assert not path.with_name("d.hdf5.parts").exists()
    first = next(read_episodes(path))
    assert first.others.keys() == {"states", "executed_actions", "taught", "rewards", "dones"}
    assert {str(values.dtype) for values in first.arrays().values()} == {"float32", "uint8", "int64"}


def test_next_observations_cost_the_last_step(tmp_path: Path, expert: FakeExpert) -> None:
    record(tmp_path / "with", expert, next_obs=True)
    record(tmp_path / "without", expert)
    for more, less in zip(read_episodes(tmp_path / "with"), read_episodes(tmp_path / "without"), strict=True):
        assert len(more) == len(less) - 1
        for key, values in less.observations.items():
            assert (more.next_observations[key] == values[1:]).all() and (more.observations[key] == values[:-1]).all()


def test_workers_and_their_deaths_change_no_byte(tmp_path: Path, expert: FakeExpert) -> None:
    record(tmp_path / "alone", expert)
    slow_first = FakeExpert(tmp_path / "other", expert.failing, expert.raising, dying_once=(3,), pause_s={0: 0.5})
    record(tmp_path / "crew", slow_first, workers=2)
    assert slow_first.performed().count(3) == 2
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "crew").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_recording_goes_on(tmp_path: Path, number: int) -> None:
    path, parts = tmp_path / "d.hdf5", tmp_path / "d.hdf5.parts"
    workers = 1 if number == signal.SIGKILL else 0
    job = [sys.executable, str(Path(__file__).with_name("fake_expert.py")), str(path), str(workers)]
    process = subprocess.Popen(job, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(parts.glob("seed-*"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.wait()
    done = len(list(parts.glob("seed-*")))
    assert not path.exists() and done >= 3
    time.sleep(0.3 if workers else 0)  # a worker that is left alone ends its seed, and then itself

    again = FakeExpert(tmp_path / "again", failing=(1, 4))
    record(path, again)
    assert again.performed() == list(range(done, 8)), "what was done is not done again"
    record(tmp_path / "whole", FakeExpert(tmp_path / "whole.log", failing=(1, 4)))
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not parts.exists()


@pytest.mark.parametrize("fault", ["dying", "hanging"])
def test_a_seed_that_kills_its_workers_ends_the_recording(tmp_path: Path, fault: str) -> None:
    expert = FakeExpert(tmp_path / "log", **{fault: (1,)})
    timeout_s = 120.0 if fault == "dying" else 15.0  # also to start the worker

    def next_seed(under_way: frozenset[int]) -> int | None:
        return None if under_way else len(expert.performed())

    ended = attempts(lambda: ExpertWorker(FakeEnv, expert, False, False), next_seed, 1, timeout_s, lives=1)
    assert next(ended).seed == 0
    with pytest.raises(RecordingError, match=r"seed 1, .* (died \(exit code 7\)|gave no answer in 15 s)"):
        next(ended)


def test_what_never_succeeds_is_given_up(tmp_path: Path) -> None:
    expert = FakeExpert(tmp_path / "log", failing=tuple(range(2, 100)))
    with pytest.raises(RecordingError, match="10 seeds in a row failed, at last 11: let go of it"):
        record(tmp_path / "d.hdf5", expert, patience=10)
    assert len(list((tmp_path / "d.hdf5.parts").glob("seed-*.hdf5"))) == 2, "what succeeded stays"


def test_an_environment_that_cannot_be_made_is_no_failure_of_the_expert(tmp_path: Path, expert: FakeExpert) -> None:
    with pytest.raises(RecordingError, match=r"cannot be made: FileNotFoundError: the mesh of the peg is missing"):
        record_demonstrations(tmp_path / "d.hdf5", no_env, expert, {}, workers=0)
    assert expert.performed() == []


def test_a_finished_file_is_neither_recorded_again_nor_overwritten(tmp_path: Path, expert: FakeExpert) -> None:
    path = tmp_path / "d.hdf5"
    record(path, expert)
    before, performed = path.read_bytes(), expert.performed()
    found = record(path, expert)
    assert found.found and found.episodes == 6 and list(found.failed) == [1, 4, 5]
    assert expert.performed() == performed
    with pytest.raises(OtherRecording, match=r"settings.episodes: 6 there, 7 now(.|\n)*overwrite=true"):
        record(path, expert, episodes=7)
    with pytest.raises(OtherRecording, match=r"source.noise: 0.1 there, 0.2 now"):
        record(path, expert, source={"noise": 0.2})
    assert path.read_bytes() == before
    assert record(path, expert, episodes=7, overwrite=True).episodes == 7

    path.write_text("somebody's notes")
    with pytest.raises(OtherRecording, match="was not recorded from an expert"):
        record(path, expert)
    assert path.read_text() == "somebody's notes"


def test_unfinished_work_of_another_kind_is_not_mixed_in(tmp_path: Path, expert: FakeExpert) -> None:
    path, parts = tmp_path / "d.hdf5", tmp_path / "d.hdf5.parts"
    with pytest.raises(RecordingError):
        record(path, FakeExpert(tmp_path / "log", failing=tuple(range(3, 100))), patience=1)
    with pytest.raises(OtherRecording, match=r"unfinished recording of another kind:\n  source.noise"):
        record(path, expert, source={"noise": 0.2})
    assert (parts / "seed-2.hdf5").exists()
    record(path, expert, source={"noise": 0.2}, overwrite=True)
    assert expert.performed().count(2) == 2, "the old part was not used"


def test_what_a_kill_left_behind_at_the_very_end_is_removed(tmp_path: Path, expert: FakeExpert) -> None:
    path, parts = tmp_path / "d.hdf5", tmp_path / "d.hdf5.parts"
    record(path, expert)
    parts.mkdir()
    (parts / "seed-2.hdf5").touch()
    record(path, expert)
    assert parts.exists(), "it may be the beginning of another recording"
    (parts / "used").touch()
    record(path, expert)
    assert not parts.exists()


def test_two_recordings_do_not_share_a_file(tmp_path: Path, expert: FakeExpert) -> None:
    (tmp_path / "d.hdf5.parts").mkdir()
    lock = FolderLock(tmp_path / "d.hdf5.parts")
    with pytest.raises(FolderInUse, match="another process"):
        record(tmp_path / "d.hdf5", expert)
    lock.release()
    record(tmp_path / "d.hdf5", expert)


@pytest.mark.parametrize(
    ("wrong", "says"), [({"episodes": 0}, "episodes must be at least 1"), ({"seed": -1}, "seed must be at least 0")]
)
def test_bad_settings(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RecordingSettings(**wrong)  # type: ignore[arg-type]
