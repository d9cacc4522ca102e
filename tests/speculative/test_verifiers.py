"""Verifiers on hand-made comparisons: the closed forms against plain loops, and the corners."""

from __future__ import annotations

import math

import pytest
import torch

from specpolicy import BlockVerifier, ReflectionVerifier, ResidualVerifier
from specpolicy.speculative import verifiers
from specpolicy.speculative.verifiers import DraftTargetGap, Rejection, Verifier, draw_residual

VERIFIERS = [ReflectionVerifier(), ResidualVerifier(), BlockVerifier()]


def block_by_loop(comparison: DraftTargetGap, uniform: torch.Tensor) -> tuple[list[int], list[float]]:
    """Section by section as the papers write it: one chain and one step at a time."""
    accepted, scales = [], []
    for row in range(len(uniform)):
        length = int(comparison.length[row])
        logs = [0.0]
        for i in range(length):
            v, s = comparison.distance[row, i].item(), comparison.noise_along_gap[row, i].item()
            logs.append(min(0.0, logs[-1] - v * s - v * v / 2))
        tau = 0
        for i in range(1, length + 1):
            p = math.exp(logs[i])
            if i == length:
                h = p
            else:
                z = verifiers.residual_mass(
                    torch.tensor([logs[i]], dtype=torch.float64), comparison.distance[row, i : i + 1]
                ).item()
                h = 1.0 if z + 1 - p == 0 else z / (z + 1 - p)
            if uniform[row, i - 1] <= h:
                tau = i
        accepted.append(tau)
        scales.append(logs[tau])
    return accepted, scales


def random_comparison(rows: int, width: int, seed: int) -> tuple[DraftTargetGap, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    distance = torch.rand(rows, width, generator=generator, dtype=torch.float64) * 1.5
    along = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    length = torch.randint(0, width + 1, (rows,), generator=generator)
    return DraftTargetGap(distance, along, length), torch.rand(rows, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 9])
def test_block_walk_is_the_loop(width: int) -> None:
    comparison, uniform = random_comparison(400, width, seed=width)
    verdict = BlockVerifier().judge(comparison, uniform)
    accepted, scales = block_by_loop(comparison, uniform)
    assert verdict.accepted.tolist() == accepted
    torch.testing.assert_close(verdict.log_scale, torch.tensor(scales, dtype=torch.float64))


def test_block_accepts_more_than_sample_verification() -> None:
    comparison, uniform = random_comparison(4000, 12, seed=0)
    block = BlockVerifier().judge(comparison, uniform).accepted.double().mean()
    sample = ResidualVerifier().judge(comparison, uniform).accepted.double().mean()
    assert block > sample + 0.05


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_one_step_is_accepted_as_often_as_theory_says(verifier: Verifier) -> None:
    """P(accept) = 2Φ(−v/2)."""
    n, v = 100_000, 0.8
    generator = torch.Generator().manual_seed(1)
    along = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    comparison = DraftTargetGap(torch.full((n, 1), v, dtype=torch.float64), along, torch.ones(n, dtype=torch.long))
    uniform = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    share = verifier.judge(comparison, uniform).accepted.double().mean().item()
    expected = 2 * torch.special.ndtr(torch.tensor(-v / 2)).item()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_equal_means_are_always_accepted(verifier: Verifier) -> None:
    comparison = DraftTargetGap.of(torch.zeros(5, 3, 2), torch.randn(5, 3, 2), torch.tensor([0, 1, 2, 3, 3]))
    verdict = verifier.judge(comparison, torch.full((5, 3), 1 - 1e-12, dtype=torch.float64))
    assert verdict.accepted.tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e-6, 1.0, 1e3, 1e18, 1e30])
def test_corners_stay_finite(verifier: Verifier, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gap = torch.randn(200, 6, 3, generator=generator) * size
    noise = torch.randn(200, 6, 3, generator=generator)
    comparison = DraftTargetGap.of(gap, noise, torch.randint(0, 7, (200,), generator=generator))
    uniform = torch.rand(200, 7, generator=generator, dtype=torch.float64)
    uniform[:20] = 0.0
    verdict = verifier.judge(comparison, uniform[:, :-1])
    assert (verdict.accepted >= 0).all() and (verdict.accepted <= comparison.length).all()
    assert not verdict.log_scale.isnan().any()
    rows = (verdict.accepted < comparison.length).nonzero().squeeze(1)
    at = verdict.accepted[rows]
    rejection = Rejection(
        comparison.distance[rows, at], comparison.noise_along_gap[rows, at], verdict.log_scale[rows], uniform[rows, -1]
    )
    u = verifier.repair(rejection)
    assert torch.isfinite(u).all()


@pytest.mark.parametrize("scale", [1.0, 0.5, 1e-6])
@pytest.mark.parametrize("distance", [25.0, 40.0, 1e3, 1e6])
def test_residuals_of_far_drafts_are_the_target(distance: float, scale: float) -> None:
    """Where draft and target do not overlap, the residual is the target's own normal distribution."""
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_c = torch.full_like(uniform, scale).log()
    drawn = draw_residual(uniform, log_c, torch.full_like(uniform, distance))
    torch.testing.assert_close(drawn, torch.special.ndtri(uniform), rtol=1e-5, atol=1e-4)
