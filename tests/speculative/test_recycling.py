"""Recycling: drafts, distribution, why block verification is refused, what it saves."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from mixtures import chains, ddpm, mixture
from torch import Tensor

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    SpeculativeSampler,
    X0Jacobian,
    ZeroGuess,
)
from specpolicy.speculative.compiled.sampler import CompiledSampler
from specpolicy.speculative.drafters.base import Drafter, DraftStart, UnverifiedTail
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.linear_chain import MultiStepTransition
from specpolicy.speculative.verifiers import Verifier


def jacobian_of(steps: int, dim: int, scale: float = 0.8) -> X0Jacobian:
    """Gains that fit no network: random sizes up to ``scale`` in a random basis."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return X0Jacobian(scale * torch.rand(steps, dim, generator=generator, dtype=torch.float64), basis.contiguous())


# ---- drafts


def a_start(window: int, counts: list[int], dim: int = 3, steps: int = 20) -> DraftStart:
    """Chains at several positions; their unverified tails are of windows of five steps."""
    generator = torch.Generator().manual_seed(5)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, dim, generator=generator, dtype=torch.float64)

    n, k = len(counts), torch.tensor([2, 6, 9, 11][: len(counts)])
    chain = MultiStepTransition(ddpm(steps)[1].to("cpu", torch.float64))
    drafted, noise = some(n, 5), some(n, 5)
    path = chain.draft_per_step(k, some(n), drafted, noise)
    tail = UnverifiedTail(path, drafted, some(n, 6), noise, torch.tensor(counts))
    noise = tail.noises(some(n, window))
    return DraftStart(chain, k, some(n), k - 1, some(n), some(n), noise, None, tail)


@pytest.mark.parametrize("window", [3, 5, 8])
@pytest.mark.parametrize("with_jacobian", [False, True])
def test_a_draft_is_the_loop(with_jacobian: bool, window: int) -> None:
    """Step by step: from the old x̂0 while there is an old path, then from the last x̂0."""
    start = a_start(window, counts=[-1, 0, 2, 5])
    assert start.tail is not None
    jacobian = jacobian_of(20, 3)
    draft, process, old = (
        RecyclingDrafter(jacobian if with_jacobian else None, trust=torch.inf).draft(start),
        start.chain.process,
        start.tail,
    )
    assert jacobian.basis is not None
    for row, count in enumerate(old.num_noises.tolist()):
        x = start.x[row]
        # From the anchor one step back, where nothing is left of the last round.
        base, mean = start.last_eval_x0[row], start.last_eval_x[row]
        mean = process.a[int(start.k[row]) - 1] * mean + process.b[int(start.k[row]) - 1] * base
        for step in range(window):
            k = int(start.k[row]) + step
            if step <= count:
                base, mean = old.target_x0[row, step], old.states[row, step]
            response = jacobian.basis @ (jacobian.values[k] * (jacobian.basis.T @ (x - mean)))
            x0 = base + (response if with_jacobian else 0.0)
            if step == count:
                base, mean = x0, x
            torch.testing.assert_close(draft.states[row, step], x)
            torch.testing.assert_close(draft.x0[row, step], x0)
            x = process.a[k] * x + process.b[k] * x0 + process.sigma[k] * start.noise[row, step]
            mean = process.a[k] * mean + process.b[k] * base


def test_the_old_path_is_left_where_it_is_far() -> None:
    """One dimension by hand: near enough for two steps, then from the x̂0 that was drafted there."""
    start = a_start(6, counts=[5, 5])
    assert start.tail is not None
    near = start.tail.states[:, 0] + 0.1 * (start.x - start.tail.states[:, 0])
    start = dataclasses.replace(start, x=near)
    far, close = (RecyclingDrafter(None, trust).draft(start) for trust in (torch.inf, 1e-9))
    old = start.tail
    assert old is not None
    torch.testing.assert_close(far.x0[:, :5], old.target_x0[:, :5])
    assert (close.x0 == start.last_eval_x0[:, None]).all()  # not even the first step is trusted
    trust = 0.5
    draft = RecyclingDrafter(None, trust).draft(start)
    for row in range(2):
        anchor = int(start.last_eval_k[row])
        mean, trusting, held = start.last_eval_x[row], True, start.last_eval_x0[row]
        for step in range(-1, 5):
            k = int(start.k[row]) + step
            if step >= 0:
                x = draft.states[row, step]
                trusting &= bool((x - old.states[row, step]).norm() <= trust * (x - mean).norm())
                held = old.target_x0[row, step] if trusting else held
                torch.testing.assert_close(draft.x0[row, step], held)
            mean = start.chain.process.a[k] * mean + start.chain.process.b[k] * start.last_eval_x0[row]
        assert anchor == int(start.k[row]) - 1


def test_what_a_round_leaves() -> None:
    """Of a window of four of which one step was kept, and one more made: from the third state on."""
    part = torch.arange(10.0).view(2, 5, 1)
    left = UnverifiedTail.after(
        part, part[:, :4] + 20, part + 30, part[:, :4] + 40, torch.tensor([4, 3]), torch.tensor([1, 3])
    )
    assert left.num_noises.tolist() == [2, -1]  # two noises nobody has looked at; nothing where all was kept
    assert left.states[0, :3, 0].tolist() == [2.0, 3.0, 4.0]
    assert left.target_x0[0, :3, 0].tolist() == [32.0, 33.0, 34.0]
    assert left.drafted_x0[0, :2, 0].tolist() == [22.0, 23.0]
    noise = left.noises(torch.full((2, 3, 1), 7.0))
    assert noise[..., 0].tolist() == [[42.0, 43.0, 7.0], [7.0, 7.0, 7.0]]
    cut = left.width(1)
    assert cut.num_noises.tolist() == [1, -1] and cut.states.shape == (2, 2, 1) and cut.noise.shape == (2, 1, 1)


# ---- distribution


VERIFIERS = [ReflectionVerifier(), ResidualVerifier()]
# (dimension, steps, window, chains): coarse chains in few dimensions are rejected often, and recycle much
CASES = [(1, 8, 3, 8_000), (1, 12, 40, 8_000), (2, 20, 6, 4_000), (2, 30, 30, 3_000), (16, 100, 24, 400)]


def smallest_p(sampler: SpeculativeSampler | CompiledSampler, dim: int, steps: int, batch: int) -> float:
    scheduler, process = ddpm(steps)
    noise, generator = chains(batch, dim, seed=steps)
    result = sampler(mixture(scheduler, dim), noise, generator=generator, record=True)
    return check_exactness(process, result).smallest


@pytest.mark.parametrize(("with_jacobian", "verifier"), list(itertools.product([False, True], VERIFIERS)))
@pytest.mark.parametrize(("dim", "steps", "window", "batch"), CASES)
def test_innovations_are_standard_normal(
    with_jacobian: bool, verifier: Verifier, dim: int, steps: int, window: int, batch: int
) -> None:
    drafter = RecyclingDrafter(jacobian_of(steps, dim) if with_jacobian else None)
    sampler = SpeculativeSampler(ddpm(steps)[1], drafter, verifier, window, ZeroGuess())
    assert sampler.exact
    assert smallest_p(sampler, dim, steps, batch) > 1e-3


@pytest.mark.parametrize("lengths", [[1, 4, 7, 2] * 3, [6] * 6 + [2] * 6])
def test_windows_that_change_are_exact(lengths: list[int]) -> None:
    sampler = SpeculativeSampler(ddpm(12)[1], RecyclingDrafter(jacobian_of(12, 1)), ReflectionVerifier(), lengths)
    assert smallest_p(sampler, 1, 12, 10_000) > 1e-3


def test_compiled_rounds_that_run_ahead_have_the_law() -> None:
    eager = SpeculativeSampler(ddpm(12)[1], RecyclingDrafter(jacobian_of(12, 1)), ReflectionVerifier(), 6)
    assert smallest_p(CompiledSampler(eager, "plain", widths=(6,)), 1, 12, 10_000) > 1e-3


@pytest.mark.parametrize(("shift", "replay"), [(0.02, None), (0.3, None), (0.1, 5)])
def test_after_a_predraft_the_sample_is_exact(shift: float, replay: int | None) -> None:
    scheduler, process = ddpm(12)
    target = mixture(scheduler, 1)
    sampler = SpeculativeSampler(process, RecyclingDrafter(), ReflectionVerifier(), 5, replay=replay)
    noise, generator = chains(10_000, 1)
    drafted = sampler.predraft(target, noise, torch.zeros(10_000, 1), generator)
    true = torch.full((10_000, 1), shift)
    result = sampler(target, drafted.start, true, generator, record=True, predraft=drafted)
    assert result.replayed is not None and 0 < float((result.replayed == (replay or 11)).double().mean()) < 1
    assert check_exactness(process, result).smallest > 1e-3


class PretendsToBeCausal(BlockVerifier):
    causal = True

    def repair(self, rejection):  # type: ignore[no-untyped-def]
        # The right coordinate for the residual; what is wrong is only that noises are used again.
        return super().repair(rejection)


def test_block_verification_is_refused() -> None:
    with pytest.raises(ValueError, match="has looked at them, so that the sample would not be exact: take Reflection"):
        SpeculativeSampler(ddpm(8)[1], RecyclingDrafter(), BlockVerifier())


def test_what_is_refused_would_be_noticed() -> None:
    sampler = SpeculativeSampler(ddpm(12)[1], RecyclingDrafter(), PretendsToBeCausal(), 11)
    assert smallest_p(sampler, 1, 12, 40_000) < 1e-9


# ---- what it saves


@pytest.mark.parametrize("window", [24, 40])
def test_it_saves_passes(window: int) -> None:
    scheduler, process = ddpm(100)
    target, (noise, generator) = mixture(scheduler, 64, scale=0.3), chains(40, 64)

    def passes(drafter: Drafter, verifier: Verifier) -> float:
        sampler = SpeculativeSampler(process, drafter, verifier, window, ZeroGuess())
        return float(sampler(target, noise, generator=generator).passes.double().mean())

    recycled = passes(RecyclingDrafter(), ReflectionVerifier())
    assert recycled < 0.7 * passes(FreeDrafter(), ReflectionVerifier())
    assert recycled < 0.85 * passes(FreeDrafter(), BlockVerifier())


def test_trust_must_be_positive() -> None:
    with pytest.raises(ValueError, match="give a share above 0"):
        RecyclingDrafter(trust=0.0)


def test_jacobian_of_another_process_are_refused() -> None:
    scheduler, process = ddpm(20)
    sampler = SpeculativeSampler(process, RecyclingDrafter(jacobian_of(12, 2)), ReflectionVerifier())
    with pytest.raises(ValueError, match="fit a Jacobian for it"):
        sampler(mixture(scheduler, 2), chains(3, 2)[0])


def test_a_leftover_must_be_handed_in() -> None:
    with pytest.raises(ValueError, match="needs the tail of the last round"):
        RecyclingDrafter().draft(dataclasses.replace(a_start(3, [0]), tail=None))
