"""Sealed seeds: refused where something is developed, opened once for a checkpoint, told apart in tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_fakes import reach, record

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.commands.common import histories_for
from specpolicy.config import SEALED_SEEDS, ConfigError, parse_seeds
from specpolicy.evaluation.compare import compare_tasks, run_missing
from specpolicy.evaluation.manifest import ConfigurationMismatch, Manifest
from specpolicy.evaluation.sealed import RECORD, SealedSeedsError, open_sealed_seeds
from specpolicy.evaluation.summary import summarize
from specpolicy.evaluation.tables import markdown_table

ROOT = Path(__file__).resolve().parents[2]


def test_no_committed_result_on_development_seeds_has_touched_them() -> None:
    manifests = sorted((ROOT / "benchmarks" / "results").rglob("manifest.json"))
    assert len(manifests) > 10
    for path in manifests:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("analysis", {}).get("seeds") != "sealed":
            used = {seed for run in content["provenance"] for seed in run.get("seeds") or []}
            assert used and not used & set(SEALED_SEEDS), path


def test_only_the_word_opens_them_and_only_where_it_may() -> None:
    assert parse_seeds("sealed", may_open=True) == list(SEALED_SEEDS)
    assert parse_seeds("sealed:100", may_open=True) == list(SEALED_SEEDS[:100])
    for seeds in ("sealed", "sealed:5", "900299:900301", 900_000, [1, 900_007]):
        with pytest.raises(ConfigError, match="seeds=sealed"):
            parse_seeds(seeds)
    with pytest.raises(ConfigError, match="is sealed"):
        parse_seeds("900000:900010", may_open=True)
    for wrong in ("sealed:0", "sealed:301", "sealed:x", "sealed:"):
        with pytest.raises(ConfigError, match="at most 300"):
            parse_seeds(wrong, may_open=True)


@pytest.mark.parametrize(
    "command",
    [
        ["rollout", "seeds=sealed"],
        ["control", "seeds=sealed:10", "executor=asynchronous"],
        ["demonstrate", "seed=899990", "episodes=20"],
    ],
)
def test_development_refuses_them(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "task=square"]) == EXIT_USER_ERROR
    assert "nothing is chosen on them" in capsys.readouterr().err


def test_nothing_is_fitted_to_their_observations(tmp_path: Path) -> None:
    Manifest({}, analysis={"seeds": "sealed"}).write(tmp_path)
    with pytest.raises(ConfigError, match="nothing is fitted"):
        histories_for(None, None, str(tmp_path / "observations.npz"))  # type: ignore[arg-type]


def test_opening_is_recorded_once_and_for_one_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("first")
    sealed = reach(tmp_path / "weights", seeds=SEALED_SEEDS[:2], repeats={"ddpm": 1})
    compare_tasks({"reach": sealed}, tmp_path / "out")
    before = (tmp_path / "out" / RECORD).read_bytes()
    (use,) = json.loads(before)["uses"]
    assert (use["task"], use["seeds"], use["margin"]) == ("reach", [900_000, 900_002], 0.05)
    assert Manifest.read(tmp_path / "out" / "reach").analysis["seeds"] == "sealed"
    assert "Sealed seeds." in (tmp_path / "out" / "reach" / "table.md").read_text()
    open_sealed_seeds({"reach": sealed}, tmp_path / "out")  # going on opens nothing anew
    assert (tmp_path / "out" / RECORD).read_bytes() == before
    assert len(open_sealed_seeds({"reach": replace(sealed, repeats={"ddpm": 2})}, tmp_path / "out")) == 2
    (tmp_path / "weights").write_text("better, knowing the first one's results")
    with pytest.raises(SealedSeedsError, match="for another checkpoint"):
        compare_tasks({"reach": sealed}, tmp_path / "out")
    (tmp_path / "out" / RECORD).write_text("{}")
    with pytest.raises(SealedSeedsError, match="damaged"):
        compare_tasks({"reach": sealed}, tmp_path / "out")


def test_kinds_of_seeds_are_not_mixed(tmp_path: Path) -> None:
    development = reach(tmp_path / "weights", repeats={"ddpm": 1}, seeds=range(2))
    run_missing({"reach": development}, {"reach": tmp_path / "out"})
    assert open_sealed_seeds({"reach": development}, tmp_path / "out") == []
    with pytest.raises(ConfigurationMismatch, match="seeds: 'development' there, 'sealed' now"):
        run_missing({"reach": replace(development, seeds=SEALED_SEEDS[:2])}, {"reach": tmp_path / "out"})
    with pytest.raises(ValueError, match="compared by themselves"):
        run_missing({"reach": replace(development, seeds=[1, 900_000])}, {"reach": tmp_path / "new"})
    both = markdown_table(summarize([record(seed=1), record(seed=900_001)]))
    assert "confirms nothing" in both
