"""Recurrences without a loop, and gains in their basis."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from specpolicy.speculative.drafters.linear import X0Jacobian
from specpolicy.speculative.linear_chain import affine_scan


@pytest.mark.parametrize("window", [1, 2, 3, 7, 8, 9, 40])
def test_the_recurrence_is_the_loop(window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    decay, kick = (torch.randn(3, window, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    state = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found = affine_scan(decay, kick, state)
    assert found.shape == (3, window + 1, 5)
    for step in range(window + 1):
        torch.testing.assert_close(found[:, step], state)
        if step < window:
            state = decay[:, step] * state + kick[:, step]


def test_a_decay_of_zero_forgets_the_past() -> None:
    decay, kick = torch.zeros(1, 6, 2), torch.arange(12.0).view(1, 6, 2)
    torch.testing.assert_close(affine_scan(decay, kick, torch.full((1, 2), 1e30))[:, 1:], kick)


def orthonormal(dim: int, rank: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(dim, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]


def test_gains_of_a_full_basis_are_a_matrix() -> None:
    basis, values = orthonormal(4, 4), torch.rand(7, 4, dtype=torch.float64)
    gains, x = X0Jacobian(values, basis), torch.randn(3, 4, dtype=torch.float64)
    assert (gains.num_steps, gains.event_numbers) == (7, 4)
    matrix = basis @ torch.diag(values[2]) @ basis.T
    torch.testing.assert_close(gains.expand(values[2] * gains.project(x)), x @ matrix)


def test_gains_of_low_rank_answer_within_their_basis_only() -> None:
    gains = X0Jacobian(torch.ones(3, 2, dtype=torch.float64), orthonormal(5, 2))
    assert gains.basis is not None and gains.event_numbers == 5
    x = torch.randn(6, 5, dtype=torch.float64)
    answer = gains.expand(gains.project(x))
    torch.testing.assert_close(gains.expand(gains.project(answer)), answer)
    torch.testing.assert_close((x - answer) @ gains.basis, torch.zeros(6, 2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_without_a_basis_each_coordinate_has_its_gain() -> None:
    gains, x = X0Jacobian(torch.rand(3, 5)), torch.randn(2, 5)
    assert gains.event_numbers == 5 and gains.project(x) is x and gains.expand(x) is x


def test_gains_move() -> None:
    moved = X0Jacobian(torch.rand(3, 2), torch.rand(5, 2)).to(torch.device("cpu"), torch.float64)
    assert moved.values.dtype == torch.float64 and moved.basis is not None and moved.basis.dtype == torch.float64
    assert X0Jacobian(torch.rand(3, 2)).to(torch.device("cpu"), torch.float64).basis is None


def test_a_basis_of_another_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the tests' own check of shapes would come first
    with pytest.raises(ValueError, match=r"gains \(3, 4\) with basis \(5, 2\); expected \(K, r\) and \(d, r\)"):
        X0Jacobian(torch.rand(3, 4), torch.rand(5, 2))
