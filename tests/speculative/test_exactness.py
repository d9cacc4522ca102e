"""Every drafter with every verifier has the sequential sampler's distribution; the tests have power."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from mixtures import chains, ddpm, mixture
from scipy import stats

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    FrozenDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    ReverseProcess,
    SequentialSampler,
    SpeculativeSampler,
)
from specpolicy.speculative import sampler_call
from specpolicy.speculative.chain_batch import ChainBatch
from specpolicy.speculative.denoiser import Denoiser
from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart
from specpolicy.speculative.exactness import _normal, check_exactness
from specpolicy.speculative.process import per_row
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.verifiers import AcceptedPrefix, DraftTargetGap, Rejection, Verifier


class OffsetDrafter(Drafter):
    """Is off the target's mean by exactly ``distance`` standard deviations at every step.

    The harshest test of a verifier: many rejections deep inside a block, where a wrong residual shows.
    """

    def __init__(self, target: Denoiser, distance: float) -> None:
        self.target, self.distance = target, distance

    def draft(self, start: DraftStart) -> Draft:
        process, states, x0s = start.chain.process, [start.x], []
        for step in range(start.noise.shape[1]):
            k, x = (start.k + step).clamp(max=process.num_steps - 1), states[-1]
            miss = torch.where(process.b[k] > 0, self.distance * process.sigma[k] / process.b[k], 0.0)
            x0s.append(process.x0(x, self.target(x, process.timesteps[k], None), k) + per_row(miss, x))
            states.append(process.mean(x, x0s[-1], k) + per_row(process.sigma[k], x) * start.noise[:, step])
        return Draft(torch.stack(states, 1), torch.stack(x0s, 1))


DRAFTERS = [FrozenDrafter, FreeDrafter]
VERIFIERS = [ReflectionVerifier, ResidualVerifier, BlockVerifier]
# (dimension, steps, window, chains): coarse chains in few dimensions show a wrong residual scale
CASES = [(1, 8, 3, 8_000), (1, 12, 40, 8_000), (2, 20, 6, 4_000), (16, 100, 24, 500)]


def smallest_p(drafter: Drafter | float, verifier: Verifier, dim: int, steps: int, window: int, batch: int) -> float:
    """The exactness test of one sampler; a number as drafter is the distance of an :class:`OffsetDrafter`."""
    scheduler, process = ddpm(steps)
    target = mixture(scheduler, dim)
    noise, generator = chains(batch, dim, seed=steps)
    drafter = OffsetDrafter(target, drafter) if isinstance(drafter, float) else drafter
    sampler = SpeculativeSampler(process, drafter, verifier, window)
    result = sampler(target, noise, generator=generator, record=True)
    return check_exactness(process, result).smallest


@pytest.mark.parametrize(("drafter", "verifier"), list(itertools.product(DRAFTERS, VERIFIERS)))
@pytest.mark.parametrize(("dim", "steps", "window", "batch"), CASES)
def test_innovations_are_standard_normal(
    drafter: type[Drafter], verifier: type[Verifier], dim: int, steps: int, window: int, batch: int
) -> None:
    assert smallest_p(drafter(), verifier(), dim, steps, window, batch) > 1e-3


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("distance", [0.5, 1.5])
@pytest.mark.parametrize(("dim", "steps", "window", "batch"), [(1, 8, 7, 8_000), (1, 12, 4, 8_000), (2, 12, 8, 5_000)])
def test_bad_drafts_do_not_spoil_the_law(
    verifier: type[Verifier], distance: float, dim: int, steps: int, window: int, batch: int
) -> None:
    assert smallest_p(distance, verifier(), dim, steps, window, batch) > 1e-3


def test_window_of_one_is_exact() -> None:
    assert smallest_p(FreeDrafter(), BlockVerifier(), dim=1, steps=8, window=1, batch=8_000) > 1e-3


@pytest.mark.parametrize("config", [{"variance_type": "fixed_large"}, {"clip_sample": True, "clip_sample_range": 0.8}])
def test_other_kernels_are_exact(config: dict[str, object]) -> None:
    scheduler, process = ddpm(12, **config)
    noise, generator = chains(15_000, 1)
    result = SpeculativeSampler(process, window=8)(mixture(scheduler, 1), noise, generator=generator, record=True)
    assert check_exactness(process, result).smallest > 1e-3


def test_sequential_passes_its_own_test() -> None:
    scheduler, process = ddpm(12)
    noise, generator = chains(10_000, 2)
    result = SequentialSampler(process)(mixture(scheduler, 2), noise, generator=generator, record=True)
    assert check_exactness(process, result).smallest > 1e-3


def test_final_samples_agree_with_sequential_ones() -> None:
    scheduler, process = ddpm(10)
    target = mixture(scheduler, 1)
    fast = SpeculativeSampler(process, window=6)(target, *_call(10_000, seed=1)).sample
    slow = SequentialSampler(process)(target, *_call(10_000, seed=2)).sample
    assert stats.ks_2samp(fast.flatten().numpy(), slow.flatten().numpy()).pvalue > 1e-3


def _call(batch: int, seed: int) -> tuple[torch.Tensor, None, torch.Generator]:
    noise, generator = chains(batch, 1, seed)
    return noise, None, generator


# ---- samplers that are wrong on purpose: the tests above must notice each of them


class AcceptsTooMuch(ResidualVerifier):
    """Acceptance probability a tenth too high."""

    def judge(self, comparison: DraftTargetGap, uniform: torch.Tensor) -> AcceptedPrefix:
        return super().judge(comparison, uniform / 1.1)


class AcceptsEverything(BlockVerifier):
    def judge(self, comparison: DraftTargetGap, uniform: torch.Tensor) -> AcceptedPrefix:
        return AcceptedPrefix(comparison.length, torch.zeros(len(uniform), dtype=torch.float64))


class UnscaledResidual(BlockVerifier):
    """Residual with c = 1 whatever was lost before."""

    def judge(self, comparison: DraftTargetGap, uniform: torch.Tensor) -> AcceptedPrefix:
        verdict = super().judge(comparison, uniform)
        return AcceptedPrefix(verdict.accepted, torch.zeros_like(verdict.log_scale))


class ReflectsInBlock(BlockVerifier):
    causal = True

    def repair(self, rejection: Rejection) -> torch.Tensor:
        return -rejection.noise_along_gap


@pytest.mark.parametrize("wrong", [AcceptsTooMuch, AcceptsEverything, UnscaledResidual, ReflectsInBlock])
@pytest.mark.parametrize("case", [(1, 8, 7, 10_000), (1, 12, 4, 10_000)])
def test_wrong_verifiers_are_noticed(wrong: type[Verifier], case: tuple[int, int, int, int]) -> None:
    assert smallest_p(1.5, wrong(), *case) < 1e-12


@pytest.mark.parametrize("wrong", [AcceptsTooMuch, AcceptsEverything])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_wrong_acceptance_is_noticed_with_good_drafts(drafter: type[Drafter], wrong: type[Verifier]) -> None:
    assert smallest_p(drafter(), wrong(), *CASES[1]) < 1e-12


class StaleNoise(ChainGenerators):
    """Hands a chain the noises that its last round drafted with but did not reach."""

    left: dict[int, torch.Tensor]

    def window_noise(self, lengths, event, chains):  # type: ignore[no-untyped-def]
        noise = super().window_noise(lengths, event, chains)
        for row, chain in enumerate(chains):
            old = getattr(self, "left", {}).get(chain, noise[row, :0])[: noise.shape[1]]
            noise[row, : len(old)] = old
        self.drawn = dict(zip(chains, noise, strict=True))
        return noise


def test_stale_noise_after_a_block_rejection_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = ChainBatch.advance

    def stale_advance(chains, active, schedule, random):  # type: ignore[no-untyped-def]
        advance(chains, active, schedule, random)
        used = chains.log.accepted[-1]
        random.left = {chain: noise[int(used[chain]) + 1 :] for chain, noise in random.drawn.items()}

    monkeypatch.setattr(sampler_call, "ChainGenerators", StaleNoise)
    monkeypatch.setattr(ChainBatch, "advance", stale_advance)
    assert smallest_p(1.5, BlockVerifier(), 1, 8, 7, 10_000) < 1e-12


def test_bookkeeping_agrees_with_a_fresh_evaluation() -> None:
    """The x̂0 that a sampler records are those of the network at the states that it records."""
    scheduler, process = ddpm(20)
    target = mixture(scheduler, 2)
    noise, generator = chains(50, 2)
    result = SpeculativeSampler(process, FrozenDrafter(), window=5)(target, noise, generator=generator, record=True)
    assert result.trajectory is not None and result.x0 is not None
    for k in range(process.num_steps):
        rows = torch.full((50,), k)
        x = result.trajectory[k]
        expected = process.x0(x, target(x, process.timesteps[rows]), rows)
        torch.testing.assert_close(result.x0[k], expected)


def test_account_adds_up() -> None:
    scheduler, process = ddpm(100)
    noise, generator = chains(64, 4)
    result = SpeculativeSampler(process, window=16)(mixture(scheduler, 4), noise, generator=generator)
    assert result.accepted is not None and result.start is not None and result.proposed is not None
    advanced = torch.where(result.accepted >= 0, result.accepted + 1, 0).sum(0)
    assert (advanced == process.num_steps).all()
    assert (result.accepted <= result.proposed).all()
    assert (result.passes < 30).all()
    assert (result.passes == (result.accepted >= 0).sum(0) + 1).all(), "Free: one pass a round and one at pure noise"


def test_process_type_is_public() -> None:
    assert isinstance(ddpm(5)[1], ReverseProcess)


@pytest.mark.parametrize("count", [50, 999, 1000, 30_000])
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.1])
def test_normality_is_scipys_test(count: int, shift: float) -> None:
    values = np.random.default_rng(count).standard_normal(count) + shift
    expected = stats.kstest(values, "norm").pvalue
    assert _normal("", values)[": normality"] == pytest.approx(expected, rel=0.01, abs=1e-9)
