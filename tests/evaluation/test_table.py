"""From records and calls to a table."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from evaluation_fakes import record
from rich.console import Console

from specpolicy.control.latency_log import CallLog, LatencyRun
from specpolicy.evaluation.statistics import clopper_pearson, clustered_clopper_pearson, sign_flip_test
from specpolicy.evaluation.summary import SummaryRow, summarize
from specpolicy.evaluation.tables import json_table, markdown_table, rich_table


def log(milliseconds: float, exact: bool, calls: int = 200) -> CallLog:
    jitter = np.random.default_rng(0).lognormal(sigma=0.1, size=calls)
    durations = [int(value) for value in 1e6 * milliseconds * jitter]
    return CallLog(exact, durations, [7] * calls, [20] * calls)


RUN = LatencyRun({"fast": log(10, True), "ddpm": log(50, True)}, "cpu", 1, 5, 3)
RNG = np.random.default_rng(0)
WON = {name: (RNG.random(40) < chance).tolist() for name, chance in {"fast": 0.8, "ddpm": 0.6}.items()}
RECORDS = [record(name, seed, success=won) for name, wins in WON.items() for seed, won in enumerate(wins)]


def rows() -> dict[str, SummaryRow]:
    return {row.sampler: row for row in summarize(RECORDS, RUN)}


def test_counts_intervals_and_tests() -> None:
    assert list(rows()) == ["ddpm", "fast"]  # the reference first
    ddpm, fast = rows().values()
    assert (fast.episodes, fast.successes) == (40, sum(WON["fast"]))
    assert fast.success == pytest.approx(clopper_pearson(sum(WON["fast"]), 40))
    assert fast.p_value == sign_flip_test(np.array(WON["fast"], int) - np.array(WON["ddpm"], int))
    assert fast.pairs == 40
    assert fast.difference is not None
    assert fast.difference.value == pytest.approx(np.mean(WON["fast"]) - np.mean(WON["ddpm"]))
    assert (ddpm.p_value, ddpm.difference, ddpm.pairs) == (None, None, 0)
    assert (fast.nfe, fast.nfe_error) == (11, 0)


def test_latency_is_in_milliseconds_and_relative_to_the_reference() -> None:
    ddpm, fast = rows()["ddpm"].latency, rows()["fast"].latency
    assert ddpm is not None and ddpm.p50 is not None and ddpm.p99 is not None
    assert ddpm.p50.low < 50 < ddpm.p50.high
    assert ddpm.p50.value < ddpm.p99.value
    assert ddpm.speed_up is None
    assert fast is not None
    assert fast.speed_up == pytest.approx((5, 5, 5), rel=1e-3)  # the same jitter on both sides cancels


def test_quantiles_that_few_calls_cannot_show_are_left_out() -> None:
    run = LatencyRun({"ddpm": log(10, True, 30)}, "cpu", 1, 0, 1)
    (row,) = summarize(latency=run)
    assert row.latency is not None
    assert row.latency.p50 is not None
    assert row.latency.p95 is not None
    assert row.latency.p99 is None
    (single,) = summarize(latency=replace(run, samplers={"ddpm": log(10, True, 1)}))
    assert single.latency is not None
    assert single.latency.p50 is None
    assert json.loads(json_table([single]))[0]["latency"]["p50"] is None


def test_repeats_of_a_seed_are_a_cluster() -> None:
    wins = {"ddpm": [3, 0, 3, 3, 0, 3], "fast": [3, 3, 3, 3, 3, 3]}
    records = [
        record(name, seed, repeat, success=repeat < won)
        for name, counts in wins.items()
        for seed, won in enumerate(counts)
        for repeat in range(3)
    ]
    ddpm, fast = summarize(records)
    assert ddpm.success == pytest.approx(clustered_clopper_pearson(wins["ddpm"], [3] * 6))
    assert fast.pairs == 18
    # two seeds speak for "fast", each with three repeats: as in two coin tosses, not six
    assert fast.p_value == 0.5


def test_nfe_have_their_error_between_seeds() -> None:
    hard, easy = (20, 20), (10, 10)
    records = [
        record(seed=seed, repeat=repeat, passes=(easy, hard)[seed % 2]) for seed in range(4) for repeat in range(3)
    ]
    once = [each for each in records if each.repeat == 0]
    ((many,), (few,)) = summarize(records), summarize(once)
    assert (many.nfe, many.seeds, many.episodes) == (15, 4, 12)
    assert (many.nfe_error, few.nfe_error) == pytest.approx((5 / np.sqrt(3), 5 / np.sqrt(3)))


def test_pairs_are_of_the_same_repeat_where_repeats_differ() -> None:
    won = {"ddpm": [[1, 0, 0], [1, 1, 1]], "fast": [[1], [0]]}
    records = [
        record(name, seed, repeat, success=bool(success))
        for name, seeds in won.items()
        for seed, repeats in enumerate(seeds)
        for repeat, success in enumerate(repeats)
    ]
    ddpm, fast = summarize(records)
    assert (fast.pairs, fast.seeds) == (2, 2)
    assert fast.difference is not None and fast.difference.value == -0.5  # not 1/2 − 4/6
    assert "Repeats of a seed count as a cluster" in markdown_table([ddpm, fast])


def test_crashes_are_failures_and_shown() -> None:
    records = [record(seed=0), record(seed=1, success=False, error="boom", passes=())]
    (row,) = summarize(records)
    assert (row.episodes, row.successes, row.crashed) == (2, 1, 1)
    assert row.nfe == 11
    assert "1/2, 1 crashed" in markdown_table([row])


def test_pairs_are_those_that_both_have_run() -> None:
    records = [record("ddpm", seed) for seed in range(5)] + [record("fast", seed) for seed in range(3, 9)]
    assert summarize(records)[1].pairs == 2
    assert summarize([record("ddpm", 0), record("fast", 1)])[1].p_value is None


def test_parts_may_be_missing() -> None:
    only_episodes = summarize(RECORDS, exact={"ddpm": True})
    assert [row.exact for row in only_episodes] == [True, None]
    assert all(row.latency is None for row in only_episodes)
    assert "ms" not in markdown_table(only_episodes)
    only_latency = summarize(latency=RUN)
    assert [row.nfe for row in only_latency] == [7, 7]
    assert "success" not in markdown_table(only_latency)
    without_reference = summarize(RECORDS, RUN, reference="nobody")
    assert all(row.p_value is None for row in without_reference)
    assert summarize() == []
    assert markdown_table([])


def test_mixed_or_doubled_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"several|\['reach', 'square'\]"):
        summarize([record(), replace(record(seed=1), task="square")])
    with pytest.raises(ValueError, match="twice"):
        summarize([record(), record()])


def test_table_in_three_forms() -> None:
    table = summarize(RECORDS, RUN)
    lines = markdown_table(table).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2].startswith("| ddpm | exact | ")
    assert "Holm's correction over the rows" in lines[-1]
    console = Console(file=io.StringIO(), width=200)
    console.print(rich_table(table, title="reach"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{sum(WON['fast'])}/40" in text
    assert "reach" in text
    parsed = json.loads(json_table(table))
    assert parsed[1]["sampler"] == "fast"
    assert parsed[1]["success"] == pytest.approx(clopper_pearson(sum(WON["fast"]), 40))


def test_only_one_column_separator_survives_odd_names() -> None:
    assert markdown_table(summarize([record("a|b")])).splitlines()[2].startswith("| a\\|b |")


def test_steps_to_success_are_of_the_episodes_that_succeeded() -> None:
    assert all(each.steps == RECORDS[0].steps for each in RECORDS)
    longer = [replace(each, steps=1000 if not each.success else 100 + each.seed) for each in RECORDS]
    row = next(row for row in summarize(longer) if row.sampler == "fast")
    mine = [100 + each.seed for each in longer if each.sampler == "fast" and each.success]
    assert row.steps is not None and row.steps.value == pytest.approx(sum(mine) / len(mine))
    assert row.steps.low < row.steps.value < row.steps.high < 1000
    assert "| steps to success |" in markdown_table(summarize(longer))


def test_a_score_is_shown_only_where_rewards_say_more_than_success() -> None:
    assert rows()["fast"].score is None and "score" not in markdown_table(summarize(RECORDS, RUN))
    scored = [replace(each, return_=0.25 + 0.5 * each.success) for each in RECORDS]
    scored[0] = replace(scored[0], error="crashed", success=False)
    row = next(row for row in summarize(scored) if row.sampler == "fast")
    assert row.score is not None and row.score.low < row.score.value < row.score.high
    assert row.score.value == pytest.approx((sum(each.return_ for each in scored[:40]) - scored[0].return_) / 40)
    assert "| score [95 %] |" in markdown_table(summarize(scored))
