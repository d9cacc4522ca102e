"""The one-dimensional residual distribution against numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from specpolicy.speculative import verifiers


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("c", "v"), [(1.0, 0.3), (0.7, 1.0), (0.05, 2.0), (1.0, 6.0), (1e-3, 0.5)])
def test_mass_and_draw_ajacobiant_quadrature(c: float, v: float) -> None:
    end = v / 2 + np.log(c) / v

    def density(u: float) -> float:
        return max(0.0, c * stats.norm.pdf(u) - stats.norm.pdf(u - v))

    z, _ = integrate.quad(density, end - 12, end, epsabs=0, epsrel=1e-10)
    assert verifiers.residual_mass(double(np.log(c)), double(v)).item() == pytest.approx(z, rel=1e-6)
    for w in (1e-6, 0.1, 0.5, 0.9, 1 - 1e-6):
        u = verifiers.draw_residual(double(w), double(np.log(c)), double(v)).item()
        below, _ = integrate.quad(density, end - 14, u, epsabs=0, epsrel=1e-10)
        assert below / z == pytest.approx(w, rel=1e-5, abs=1e-8)


@settings(max_examples=300, deadline=None)
@given(
    w=st.floats(0.0, 1.0, exclude_max=True),
    log_c=st.one_of(st.just(0.0), st.floats(-700.0, 0.0)),
    v=st.one_of(st.floats(1e-9, 1e-3), st.floats(1e-3, 50.0), st.floats(50.0, 1e6)),
)
def test_never_nan_and_never_past_the_end(w: float, log_c: float, v: float) -> None:
    u = verifiers.draw_residual(double(w), double(log_c), double(v))
    assert torch.isfinite(u).all()
    assert u <= verifiers.residual_support_end(double(log_c), double(v))
    z = verifiers.residual_mass(double(log_c), double(v))
    assert 0 <= z <= 1


def test_far_apart_means_leave_the_target_alone() -> None:
    w = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    u = verifiers.draw_residual(w, torch.zeros_like(w), torch.full_like(w, 1e5))
    torch.testing.assert_close(u, torch.special.ndtri(w))


def test_equal_means_have_no_residual() -> None:
    assert verifiers.residual_mass(double(0.0), double(0.0)).item() == 0
