"""A results folder survives whatever happens to its writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_fakes import record

from specpolicy.evaluation import results
from specpolicy.evaluation.manifest import ConfigurationMismatch, ManifestError, ResultsError
from specpolicy.evaluation.results import (
    CorruptShardWarning,
    ResultStore,
    new_shard,
    read_observations,
    read_results,
    shard_paths,
    write_observations,
    write_shard,
)
from specpolicy.rollout.episodes import EpisodeKey
from specpolicy.utils.files import FolderInUse

CONFIGURATION = {"task": "reach", "policy": {"sha256": "abc", "horizons": (2, 16, 8)}}


def opened(folder: Path, **more: Any) -> ResultStore:
    return ResultStore(folder, CONFIGURATION, {"ddpm": {"exact": True}}, **more)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [record(seed=1, passes=(), error="boom", success=False), record(seed=2, passes=(3, 4, 5))]
    with opened(tmp_path) as store:
        for each in records:
            store.append(each)
    assert read_results(tmp_path)[0] == records
    with opened(tmp_path) as store:
        assert store.records() == records
        assert store.done() == {EpisodeKey("ddpm", 1, 0), EpisodeKey("ddpm", 2, 0)}
        assert store.done(count_crashed=False) == {EpisodeKey("ddpm", 2, 0)}


def test_shards_can_be_queried_without_this_library(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(record(passes=(10, 20)))
    (row,) = pq.read_table([str(path) for path in tmp_path.glob("*.parquet")]).to_pylist()
    assert (row["chunks"], row["mean_passes"], row["crashed"], row["error"]) == (2, 15.0, False, None)


def test_an_episode_is_on_disk_when_it_has_ended(tmp_path: Path) -> None:
    """Nothing waits for the next episode: what has been appended is there for whoever reads."""
    with opened(tmp_path) as store:
        for seed in range(20):
            store.append(record(seed=seed))
            assert [each.seed for each in read_results(tmp_path)[0]] == list(range(seed + 1))
    assert len(shard_paths(tmp_path)) == 1
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
def test_a_run_that_is_killed_loses_no_episode_that_has_ended(tmp_path: Path) -> None:
    """Twenty episodes end together, then comes kill -9."""
    program = (
        "import os, signal, sys; from evaluation_fakes import record\n"
        "from specpolicy.evaluation.results import ResultStore\n"
        "store = ResultStore(sys.argv[1], {'task': 'reach'})\n"
        "for seed in range(20): store.append(record(seed=seed))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [each.seed for each in read_results(tmp_path)[0]] == list(range(20))
    with ResultStore(tmp_path, {"task": "reach"}) as store:  # the lock died with its owner
        store.append(record(seed=20))
    assert len(read_results(tmp_path)[0]) == 21


def test_a_shard_is_full_at_some_point_and_another_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_SHARD_EPISODES", 3)
    with opened(tmp_path) as store:
        for seed in range(7):
            store.append(record(seed=seed))
    assert [pq.read_metadata(path).num_rows for path in shard_paths(tmp_path)] == [3, 3, 1]
    assert [each.seed for each in read_results(tmp_path)[0]] == list(range(7))


def test_a_full_disk_ends_in_one_line_and_harms_nothing(tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk; the shard outgrows it after some episodes."""
    program = (
        "import resource, signal, sys; from evaluation_fakes import record; import pyarrow.parquet\n"
        "from specpolicy.evaluation.results import ResultsError, ResultStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store, seed = ResultStore(sys.argv[1], {'task': 'reach'}), 0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try:\n"
        "    for seed in range(200): store.append(record(seed=seed, passes=tuple(range(seed, seed + 50))))\n"
        "except ResultsError as error: print(seed, error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, check=True, capture_output=True, text=True
    )
    written, _, message = done.stdout.strip().partition(" ")
    (shard,) = shard_paths(tmp_path)
    assert message.startswith(f"{shard} could not be written (") and "run the same command again" in message
    assert "\n" not in message and not list(tmp_path.glob(".*.tmp"))
    assert [each.seed for each in read_results(tmp_path)[0]] == list(range(int(written))) and int(written) > 5
    with ResultStore(tmp_path, {"task": "reach"}) as store:  # once there is room
        assert len(store.done()) == int(written)
        store.append(record(seed=int(written)))
    assert len(read_results(tmp_path)[0]) == int(written) + 1


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResultsError, match=f"{path} cannot hold results .* out="):
            opened(path)


def test_duplicates_count_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(record(seed=1, steps=7))
    write_shard(new_shard(tmp_path), [record(seed=1, steps=9), record(seed=2)])
    records, _ = read_results(tmp_path)
    assert [(each.seed, each.steps) for each in records] == [(1, 7), (2, 5)]


def test_a_crash_gives_way_to_a_later_result(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(record(seed=1, success=False, error="boom"))
        store.append(record(seed=1, success=True))
        store.append(record(seed=1, success=False, error="again"))
        assert [each.error for each in store.records()] == [None]
    assert [each.success for each in read_results(tmp_path)[0]] == [True]


def test_no_flipped_bit_changes_a_result(tmp_path: Path) -> None:
    """Wherever a bit flips, a shard is read as it was written, or set aside."""
    with opened(tmp_path) as store:
        store.append(record(seed=1000))
    records = [record(seed=seed, success=seed % 3 > 0, passes=(seed, 9, 11)) for seed in range(40)]
    shard = write_shard(new_shard(tmp_path), records)
    content, rng, unchanged = shard.read_bytes(), np.random.default_rng(0), 0
    for _ in range(120):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        shard.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_results(tmp_path)[0]
        assert found in ([*records, record(seed=1000)], [record(seed=1000)])
        unchanged += len(found) > 1
    assert 0 < unchanged < 100


def test_an_episode_without_a_value_is_corrupt(tmp_path: Path) -> None:
    opened(tmp_path).close()
    shard = write_shard(new_shard(tmp_path), [record()])
    table = pq.read_table(shard).replace_schema_metadata(None)
    nulls = pa.nulls(1, table.schema.field("success").type)
    pq.write_table(table.set_column(table.schema.get_field_index("success"), "success", nulls), shard)
    with pytest.warns(CorruptShardWarning, match="lacks a value"):
        assert read_results(tmp_path)[0] == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", b"\x80\x04N."])
def test_damaged_observations_are_named(tmp_path: Path, content: bytes) -> None:
    write_observations([{"x": np.zeros((1, 2, 3))}] * 2, tmp_path)
    assert len(read_observations(tmp_path)) == 2
    (tmp_path / "observations.npz").write_bytes(content)
    with pytest.raises(ResultsError, match=r"observations\.npz cannot be read"):
        read_observations(tmp_path)
    np.savez(tmp_path / "observations.npz", x=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ResultsError, match=r"observations\.npz cannot be read"):
        read_observations(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign"])
def test_a_corrupt_shard_is_set_aside_and_its_episodes_run_again(tmp_path: Path, damage: str) -> None:
    with opened(tmp_path) as store:
        store.append(record(seed=1))
    bad = write_shard(new_shard(tmp_path), [record(seed=seed) for seed in range(2, 40)])
    content = bytearray(bad.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    elif damage == "flipped":
        content[100] ^= 0xFF
    bad.write_bytes(content)
    if damage == "foreign":
        pq.write_table(pq.read_table(bad).select(["seed"]), bad)
    with pytest.warns(CorruptShardWarning, match=bad.name):
        read_results(tmp_path)
    assert bad.exists()  # who only reads moves nothing
    with pytest.warns(CorruptShardWarning, match=f"{bad.name} cannot be read .* is now {bad.name}.corrupt"):
        store = opened(tmp_path)
    with store:
        assert store.done() == {EpisodeKey("ddpm", 1, 0)}
        store.append(record(seed=2))
    assert bad.with_name(bad.name + ".corrupt").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [each.seed for each in read_results(tmp_path)[0]] == [1, 2]


def test_another_configuration_is_refused_field_by_field(tmp_path: Path) -> None:
    opened(tmp_path).close()
    other = {"task": "reach", "policy": {"sha256": "xyz", "horizons": [2, 16, 8]}, "max_steps": 400}
    with pytest.raises(ConfigurationMismatch) as raised:
        ResultStore(tmp_path, other)
    message = str(raised.value)
    assert "policy.sha256: 'abc' there, 'xyz' now" in message
    assert "max_steps: (absent) there, 400 now" in message
    assert "horizons" not in message
    assert "new folder" in message
    opened(tmp_path).close()  # the refusal has let go of the folder


def test_new_samplers_may_join_but_not_change(tmp_path: Path) -> None:
    opened(tmp_path, provenance={"machine": "first"}).close()
    new = {"free": {"exact": True, "window": 24}}
    with ResultStore(tmp_path, CONFIGURATION, new, provenance={"machine": "second"}) as store:
        assert store.manifest.samplers == {"ddpm": {"exact": True}, **new}
    with pytest.raises(ConfigurationMismatch, match=r"samplers.free.window: 24 there, 20 now"):
        ResultStore(tmp_path, CONFIGURATION, {"free": {"exact": True, "window": 20}})
    assert read_results(tmp_path)[1].provenance == [{"machine": "first"}, {"machine": "second"}]


def test_configuration_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="configuration must be plain data"):
        ResultStore(tmp_path, {"path": tmp_path})


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(FolderInUse, match="another process"):
        opened(tmp_path)
    opened(tmp_path).close()


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', '{"format": 1, "what": 2}', None])
def test_a_bad_manifest_says_so(tmp_path: Path, content: str | None) -> None:
    write_shard(new_shard(tmp_path), [record()])
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ManifestError, match=str(tmp_path)):
        opened(tmp_path)
    with pytest.raises(ManifestError, match=str(tmp_path)):
        read_results(tmp_path)


def test_manifest_is_readable_json(tmp_path: Path) -> None:
    opened(tmp_path).close()
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["configuration"]["policy"]["horizons"] == [2, 16, 8]


def test_an_archive_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "observations.npz", position=np.zeros((400, 10_000)))
    with pytest.raises(ResultsError, match=r"it would take 31 MiB from a file of 0.0 MiB.*delete it"):
        read_observations(tmp_path)
