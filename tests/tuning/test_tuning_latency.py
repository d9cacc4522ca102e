"""What a round costs: measured passes, what lies between them, and what is not the network."""

from __future__ import annotations

import time

import pytest
import torch

from specpolicy.speculative.result import SampleResult
from specpolicy.tuning.cost_model import RoundCost, TimedCall, fit_overhead, measure_evaluations, timed_call


def test_passes_between_measured_ones_are_interpolated_and_beyond_extrapolated() -> None:
    cost = RoundCost([1, 3, 5], [1.0, 2.0, 2.0 + 3.0])
    assert [cost.of_evaluation(rows) for rows in (1, 2, 3, 4, 5, 7)] == pytest.approx([1, 1.5, 2, 3.5, 5, 8])
    assert RoundCost([1, 9], [4.0, 3.9]).of_evaluation(100) == pytest.approx(3.9), "noise is no speed-up"


def test_the_rows_of_a_round() -> None:
    """A window of w steps is w + 1 rows, but for a start whose x̂0 a pass of its own has found."""
    rows = [1, 2, 3, 4, 5]
    free = RoundCost(rows, [10.0, 20.0, 30.0, 40.0, 50.0], overhead_ms=1.0, overhead_row_ms=0.1, has_initial_guess=True)
    assert free(0, 3) == free(7, 3) == pytest.approx(40 + 1 + 0.4)
    assert free(9, 0) == pytest.approx(10 + 1 + 0.1), "the last step alone"
    unopened = RoundCost(rows, free.milliseconds)
    assert unopened(0, 3) == pytest.approx(10 + 30) and unopened(1, 3) == pytest.approx(40)
    frozen = RoundCost(rows, free.milliseconds, extra_evaluation=True, has_initial_guess=True)
    assert frozen(0, 3) == pytest.approx(40) and frozen(5, 3) == pytest.approx(10 + 30)
    assert frozen(5, 0) == pytest.approx(10)


def test_passes_are_timed_by_their_rows_without_the_warm_up() -> None:
    calls: list[int] = []

    def evaluate(rows: int) -> None:
        calls.append(rows)
        time.sleep(0.001 * rows + (0.05 if len(calls) <= 2 else 0))

    one, four = measure_evaluations(evaluate, [1, 4], repeats=5, warmup=1)
    assert len(calls) == 12 and set(calls[:2]) == {1, 4}
    assert 1 <= one < 30 and 4 <= four < 30 and one < four
    with pytest.raises(ValueError, match="nothing to measure"):
        measure_evaluations(evaluate, [], repeats=5)


def test_the_overhead_is_split_into_rounds_and_rows() -> None:
    calls = [TimedCall(7 + 2 * rounds + 0.5 * rows, 7, rounds, rows) for rounds, rows in ((3, 40), (6, 30), (5, 90))]
    assert fit_overhead(calls) == pytest.approx((2, 0.5))
    falling = [TimedCall(2 * rounds - 0.01 * rows, 0, rounds, rows) for rounds, rows in ((3, 40), (6, 30), (5, 90))]
    per_round, per_row = fit_overhead(falling)
    assert per_row == 0 and 1.5 < per_round < 2, "nothing costs less than nothing"
    with pytest.raises(ValueError, match="no timed call"):
        fit_overhead([])


def test_a_call_is_taken_apart() -> None:
    def denoiser(x: torch.Tensor, timestep: torch.Tensor, cond: object) -> torch.Tensor:
        time.sleep(0.004)
        return x

    def sample(net: object) -> SampleResult:
        for _ in range(2):
            net(torch.zeros(3), torch.zeros(3), None)  # type: ignore[operator]
        time.sleep(0.006)
        count = torch.tensor([2])
        return SampleResult(torch.zeros(1, 1), count, 3 * count, start=torch.tensor([[0], [4], [-1]]))

    call = timed_call(sample, denoiser)
    assert (call.rounds, call.rows) == (2, 6)
    assert call.network_ms >= 8 and call.milliseconds - call.network_ms >= 6
