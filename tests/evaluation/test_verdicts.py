"""Verdicts at a margin: corrected for a table's rows, fixed before the first episode, right as often as they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_fakes import reach, record

from specpolicy.evaluation.compare import run_missing
from specpolicy.evaluation.manifest import ConfigurationMismatch, Manifest
from specpolicy.evaluation.statistics import Estimate, StatisticsError, paired_difference
from specpolicy.evaluation.summary import summarize
from specpolicy.evaluation.tables import markdown_table
from specpolicy.evaluation.verdicts import (
    INFERIOR,
    NON_INFERIOR,
    UNDECIDED,
    among_best,
    holm,
    margin_p_value,
    verdicts,
)


def judged(differences: Sequence[Estimate], margin: float = 0.05) -> list[str]:
    return verdicts(differences, [margin_p_value(each, margin) for each in differences], margin)


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 5), (2, 12), (0, 4), (10, 60), (3, 30)])
def test_one_row_is_judged_as_its_interval_shows(wins: int, losses: int) -> None:
    """Without others to correct for: non-inferior where the interval lies above the margin, inferior where below."""
    difference = paired_difference([1] * wins + [-1] * losses + [0] * (300 - wins - losses))
    wanted = NON_INFERIOR if difference.low > -0.05 else INFERIOR if difference.high < -0.05 else UNDECIDED
    assert judged([difference]) == [wanted]
    assert margin_p_value(Estimate(0, -0.05, 0.05)) == pytest.approx(0.05)


def test_rows_are_judged_together() -> None:
    near = Estimate(0.0, -0.045, 0.045)  # a p value of 3 %
    assert judged([near]) == [NON_INFERIOR]
    assert judged([near] * 3) == [UNDECIDED] * 3
    assert judged([near, Estimate(0.0, -0.01, 0.01), Estimate(-0.3, -0.4, -0.2)]) == [NON_INFERIOR] * 2 + [INFERIOR]


def test_wrong_verdicts_are_rare_over_a_whole_table() -> None:
    """Eight samplers that lose the margin exactly: either verdict would be wrong, without correction often."""
    rng = np.random.default_rng(0)
    wrong, alone = 0, 0
    for _ in range(400):
        table = [paired_difference(rng.choice([-1, 0, 1], 300, p=[0.12, 0.81, 0.07])) for _ in range(8)]
        wrong += judged(table) != [UNDECIDED] * 8
        alone += any(judged([each]) != [UNDECIDED] for each in table)
    assert wrong / 400 < 0.075
    assert alone / 400 > 0.2


def test_the_best_is_in_its_set_and_a_worse_one_is_not() -> None:
    rng = np.random.default_rng(1)
    excluded, worse = 0, 0
    for _ in range(200):
        wins = rng.random((4, 80)) < np.array([[0.8], [0.8], [0.8], [0.4]])
        rows = {name: wins[place].astype(int) for place, name in enumerate("abcd")}
        best = among_best(list(rows), lambda first, second, rows=rows: list(rows[first] - rows[second]))  # type: ignore[misc]
        excluded += not best["a"]
        worse += best["d"]
    assert excluded / 200 <= 0.05
    assert worse / 200 < 0.1


def test_a_table_names_margin_verdict_and_best() -> None:
    rng = np.random.default_rng(2)
    records = [
        record(name, seed, success=bool(rng.random() < rate))
        for name, rate in (("ddpm", 0.9), ("bad", 0.3))
        for seed in range(60)
    ]
    records += [replace(each, sampler="same") for each in records if each.sampler == "ddpm"]
    rows = {row.sampler: row for row in summarize(records)}
    assert [rows[name].verdict for name in ("ddpm", "same", "bad")] == [None, NON_INFERIOR, INFERIOR]
    assert [rows[name].best for name in ("ddpm", "same", "bad")] == [True, True, False]
    assert rows["bad"].p_corrected == pytest.approx(2 * rows["bad"].p_value)  # type: ignore[operator]
    text = markdown_table(list(rows.values()))
    assert "| at \u22125 points | best |" in text and "| inferior |  |" in text and "| non-inferior | ✓ |" in text
    assert "Development seeds." in text and "at a loss of 5 points" in text
    strict = {row.sampler: row for row in summarize(records, margin=0.001)}
    assert strict["same"].verdict == UNDECIDED
    patient = {row.sampler: row for row in summarize(records, anytime=True)}
    assert patient["bad"].verdict == INFERIOR and patient["same"].verdict == UNDECIDED
    assert "however often" in markdown_table(list(patient.values()))


def test_a_folder_refuses_another_margin(tmp_path: Path) -> None:
    comparison = reach(tmp_path / "weights", repeats={"ddpm": 1}, seeds=range(2))
    run_missing({"reach": comparison}, {"reach": tmp_path / "out"})
    expected = {"margin": 0.05, "anytime": False, "seeds": "development"}
    assert Manifest.read(tmp_path / "out").analysis == expected
    for change in ({"margin": 0.1}, {"anytime": True}):
        with pytest.raises(ConfigurationMismatch, match=rf"{next(iter(change))}.*\n.*first episode"):
            run_missing({"reach": replace(comparison, **change)}, {"reach": tmp_path / "out"})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["analysis"]  # of a folder older than margins
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    run_missing({"reach": replace(comparison, margin=0.1)}, {"reach": tmp_path / "out"})
    assert Manifest.read(tmp_path / "out").analysis == {**expected, "margin": 0.1, "fixed": "after the first run"}


@pytest.mark.parametrize("margin", [0.0, 5, -0.05, float("nan")])
def test_margins_are_shares(tmp_path: Path, margin: float) -> None:
    with pytest.raises(StatisticsError, match=r"5 points are 0\.05"):
        reach(tmp_path / "weights", margin=margin)
