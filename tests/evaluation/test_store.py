"""A results folder survives whatever happens to its writer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from evaluation_fakes import record

from specpolicy.evaluation.results import (
    ConfigurationMismatch,
    CorruptShardWarning,
    ManifestError,
    ResultStore,
    read_results,
    shard_paths,
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


def test_bursts_are_written_together(tmp_path: Path) -> None:
    with opened(tmp_path, flush_every_s=1000) as store:
        for seed in range(5):
            store.append(record(seed=seed))
        assert len(shard_paths(tmp_path)) == 1  # the first at once, the others later
        assert len(read_results(tmp_path)[0]) == 1
        store.flush()
        assert len(read_results(tmp_path)[0]) == 5
    assert len(shard_paths(tmp_path)) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_duplicates_count_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(record(seed=1, steps=7))
    write_shard(tmp_path, [record(seed=1, steps=9), record(seed=2)])
    records, _ = read_results(tmp_path)
    assert [(each.seed, each.steps) for each in records] == [(1, 7), (2, 5)]


def test_a_crash_gives_way_to_a_later_result(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(record(seed=1, success=False, error="boom"))
        store.append(record(seed=1, success=True))
        store.append(record(seed=1, success=False, error="again"))
        assert [each.error for each in store.records()] == [None]
    assert [each.success for each in read_results(tmp_path)[0]] == [True]


def test_merging_cut_short_doubles_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, flush_every_s=0) as store:
        for seed in range(4):
            store.append(record(seed=seed))
        write_shard(tmp_path, store.records())  # the merged shard is there, the old ones still are too
        assert len(shard_paths(tmp_path)) == 5
        assert len(read_results(tmp_path)[0]) == 4
    assert len(shard_paths(tmp_path)) == 1
    assert len(read_results(tmp_path)[0]) == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign"])
def test_a_corrupt_shard_is_set_aside_and_its_episodes_run_again(tmp_path: Path, damage: str) -> None:
    with opened(tmp_path) as store:
        store.append(record(seed=1))
    bad = write_shard(tmp_path, [record(seed=seed) for seed in range(2, 40)])
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
    write_shard(tmp_path, [record()])
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
