"""Recurrences without a loop, and Jacobian in their basis."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from specpolicy.speculative.drafters.linear import X0Jacobian
from specpolicy.speculative.linear_chain import affine_scan


@pytest.mark.parametrize("window", [1, 2, 3, 7, 8, 9, 40])
def test_the_recurrence_is_the_loop(window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    scale, shift = (torch.randn(3, window, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    state = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found = affine_scan(scale, shift, state)
    assert found.shape == (3, window + 1, 5)
    for step in range(window + 1):
        torch.testing.assert_close(found[:, step], state)
        if step < window:
            state = scale[:, step] * state + shift[:, step]


def test_a_decay_of_zero_forgets_the_past() -> None:
    scale, shift = torch.zeros(1, 6, 2), torch.arange(12.0).view(1, 6, 2)
    torch.testing.assert_close(affine_scan(scale, shift, torch.full((1, 2), 1e30))[:, 1:], shift)


def orthonormal(dim: int, rank: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(dim, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]


def test_jacobian_of_a_full_basis_are_a_matrix() -> None:
    basis, values = orthonormal(4, 4), torch.rand(7, 4, dtype=torch.float64)
    jacobian, x = X0Jacobian(values, basis), torch.randn(3, 4, dtype=torch.float64)
    assert (jacobian.num_steps, jacobian.event_numbers) == (7, 4)
    matrix = basis @ torch.diag(values[2]) @ basis.T
    torch.testing.assert_close(jacobian.expand(values[2] * jacobian.project(x)), x @ matrix)


def test_jacobian_of_low_rank_answer_within_their_basis_only() -> None:
    jacobian = X0Jacobian(torch.ones(3, 2, dtype=torch.float64), orthonormal(5, 2))
    assert jacobian.basis is not None and jacobian.event_numbers == 5
    x = torch.randn(6, 5, dtype=torch.float64)
    answer = jacobian.expand(jacobian.project(x))
    torch.testing.assert_close(jacobian.expand(jacobian.project(answer)), answer)
    torch.testing.assert_close(
        (x - answer) @ jacobian.basis, torch.zeros(6, 2, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_without_a_basis_each_coordinate_has_its_gain() -> None:
    jacobian, x = X0Jacobian(torch.rand(3, 5)), torch.randn(2, 5)
    assert jacobian.event_numbers == 5 and jacobian.project(x) is x and jacobian.expand(x) is x


def test_jacobian_move() -> None:
    moved = X0Jacobian(torch.rand(3, 2), torch.rand(5, 2)).to(torch.device("cpu"), torch.float64)
    assert moved.values.dtype == torch.float64 and moved.basis is not None and moved.basis.dtype == torch.float64
    assert X0Jacobian(torch.rand(3, 2)).to(torch.device("cpu"), torch.float64).basis is None


def test_a_basis_of_another_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the tests' own check of shapes would come first
    with pytest.raises(ValueError, match=r"jacobian \(3, 4\) with basis \(5, 2\); expected \(K, r\) and \(d, r\)"):
        X0Jacobian(torch.rand(3, 4), torch.rand(5, 2))
