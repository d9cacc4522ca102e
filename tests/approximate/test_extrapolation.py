"""Features that come from the cache."""

from __future__ import annotations

import math

import pytest
import torch

from specpolicy.approximate.specdiff.token_cache import FeatureHistory

NONE = torch.zeros(2, 3, dtype=torch.bool)


def linear(time: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    start, rate = torch.randn(2, 2, 3, 4, generator=generator)
    return start + rate * time / 10


def filled(times: list[float]) -> FeatureHistory:
    history = FeatureHistory(linear(0.0))
    for time in times:
        history.push(linear(time), time, None)
    return history


@pytest.mark.parametrize("times", [[9.0, 7.0], [9.0, 8.0, 7.0], [20.0, 9.5, 7.0], [90.0, 60.0, 20.0, 18.0]])
def test_linear_features_are_found_whatever_the_times(times: list[float]) -> None:
    history = filled(times)
    for now in (times[-1], times[-1] - 1, times[-1] - 6.5):
        torch.testing.assert_close(history.predict(now, NONE), linear(now), rtol=1e-4, atol=1e-4)


def test_the_weights_are_those_of_the_formula() -> None:
    history = filled([10.0, 7.0, 5.0])
    near, far = math.exp(-1), math.exp(-2)
    # rates (F0 - F1) / -2 and (F0 - F2) / -5, gone on with for 4 units of falling time
    first, second = -4 / -2 * near / (near + far), -4 / -5 * far / (near + far)
    expected = torch.tensor([1 + first + second, -first, -second])
    weights = history.weights(1.0, NONE)
    torch.testing.assert_close(weights, expected[:, None, None].expand(3, 2, 3))
    torch.testing.assert_close(weights.sum(0), torch.ones(2, 3))


def test_copies_and_single_features_stand_still() -> None:
    copied = torch.tensor([[True, False, False], [False, False, True]])
    got = filled([9.0, 7.0]).predict(3.0, copied)
    torch.testing.assert_close(got[copied], linear(7.0)[copied])
    assert not torch.allclose(got[~copied], linear(7.0)[~copied])
    torch.testing.assert_close(filled([9.0]).predict(3.0, NONE), linear(9.0))


def test_halves_are_added_up_in_float32() -> None:
    """Weights of 3 and -2 would leave their own rounding errors in bfloat16."""
    history = FeatureHistory(linear(0.0).bfloat16())
    for time in (90.0, 89.0, 88.0):
        history.push(torch.full_like(linear(0.0), 100.0).bfloat16(), time, None)
    got = history.predict(81.3, NONE)
    assert got.dtype == torch.bfloat16 and (got == 100).all()


def test_each_token_keeps_its_own_times() -> None:
    """Token 0 of the first row and token 2 of the second are computed at other times than the rest."""
    history = filled([9.0, 8.0])
    index = torch.tensor([[0], [2]])
    for time in (6.0, 3.0):
        history.push(linear(time).gather(1, index[..., None].expand(-1, -1, 4)), time, index)
    assert history.count.tolist() == [[3, 2, 2], [2, 2, 3]]
    assert history.times[:, 0, 0].tolist() == [3.0, 6.0, 8.0] and history.times[:2, 0, 1].tolist() == [8.0, 9.0]
    torch.testing.assert_close(history.predict(3.0, NONE), linear(3.0), rtol=1e-4, atol=1e-4)
    computed = history.predict(3.0, NONE)[0, 0]
    assert torch.equal(computed, linear(3.0)[0, 0]), "what was computed now is not touched"
