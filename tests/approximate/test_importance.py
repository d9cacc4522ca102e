"""Scores, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specpolicy.approximate.specdiff.importance import FLOOR, log_importance
from specpolicy.approximate.specdiff.token_cache import attend, choose_levels


def test_importance_is_history_times_future_times_starvation() -> None:
    history, future = torch.tensor([[1.0, 2.0, 4.0, 1.0]]), torch.tensor([[3.0, 1.0, 1.0, 3.0]])
    served = torch.tensor([[0, 0, 0, 2]])
    got = log_importance(history, future, served).exp()
    # means 2 and 2: (.5, 1, 2, .5) x (1.5, .5, .5, 1.5) x (1, 1, 1, e^2), each score lifted by the floor
    expected = [(h / 2 + FLOOR) * (f / 2 + FLOOR) for h, f in zip((1, 2, 4, 1), (3, 1, 1, 3), strict=True)]
    expected[3] *= math.exp(2)
    torch.testing.assert_close(got, torch.tensor([expected]))
    assert got.argmax() == 3, "0.75 e² beats 1.0: it has starved for two steps"
    without = log_importance(history, None, torch.zeros_like(served))
    assert without.argmax() == 2, "history alone"


def test_only_proportions_count_and_nobody_is_worth_nothing() -> None:
    history, served = torch.tensor([[0.0, 5.0]]), torch.zeros((1, 2), dtype=torch.long)
    first = log_importance(history, None, served)
    torch.testing.assert_close(log_importance(history * 1e-20, None, served), first)
    assert torch.isfinite(first).all()
    assert torch.isfinite(log_importance(torch.zeros(1, 2), torch.zeros(1, 2), served)).all()
    starved = torch.tensor([[9, 0]])
    assert log_importance(history, None, starved).argmax() == 0


def test_attention_received_is_summed_over_heads_and_queries() -> None:
    """Two queries, three keys; the scores are logarithms of what each query gives."""
    given = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    part = 2**0.5  # attention divides by the root of the width of a part
    query, key = torch.eye(2)[None, None], (part * given.log().T)[None, None]
    value = torch.eye(3)[None, None]
    mixed, received = attend(query, key, value)
    torch.testing.assert_close(mixed[0, 0], given)
    torch.testing.assert_close(received[0], torch.tensor([0.6, 0.35, 1.05]))
    _, twice = attend(query.repeat(1, 2, 1, 1), key.repeat(1, 2, 1, 1), value.repeat(1, 2, 1, 1))
    torch.testing.assert_close(twice, 2 * received)


def test_attention_is_the_fused_one() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    fused = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(query, key, value)[0], fused(query, key, value))
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(attend(query, key, value, allowed)[0], fused(query, key, value, is_causal=True))


def test_levels_of_a_known_row() -> None:
    share = torch.tensor([[0.40, 0.04, 0.30, 0.05, 0.15, 0.06]])
    levels = choose_levels(share.log(), 2, copied=0.1)
    assert levels.computed.tolist() == [[0, 2]]
    # .04 + .05 = .09 is within a tenth, and .06 more is not
    assert levels.copied.tolist() == [[False, True, False, True, False, False]]
    assert levels.cached.tolist() == [[False, True, False, True, True, True]]


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=12),
    st.floats(0, 1),
    st.integers(1, 12),
)
def test_levels_part_the_tokens(scores: list[float], copied: float, count: int) -> None:
    row = torch.tensor([scores, scores[::-1]], dtype=torch.float64)
    count = min(count, row.shape[1])
    levels = choose_levels(row, count, copied)
    assert levels.computed.shape == (2, count)
    computed = torch.zeros(row.shape, dtype=torch.bool).scatter(1, levels.computed, True)
    assert (computed.sum(1) == count).all(), "no token twice, as many in every row"
    extrapolated = ~computed & ~levels.copied
    assert torch.equal(computed.int() + levels.copied.int() + extrapolated.int(), torch.ones_like(row).int())
    assert (row[0][computed[0]].min() >= row[0][~computed[0]].max()) if count < len(scores) else True
    share = row.softmax(1)
    assert ((share * levels.copied).sum(1) <= copied + 1e-4).all()


@pytest.mark.parametrize(("copied", "expected"), [(0.0, 0), (1.0, 3)])
def test_none_or_all_cached_tokens_are_copied(copied: float, expected: int) -> None:
    levels = choose_levels(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), 1, copied)
    assert int(levels.copied.sum()) == expected
