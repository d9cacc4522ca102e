"""One chain in NumPy: the samples, rounds and counts of the batched rounds at equal seeds, and its distribution."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from mixtures import chains, ddpm, mixture

from specpolicy import (
    BlockVerifier,
    DenoiserError,
    FreeDrafter,
    FrozenDrafter,
    LinearDrafter,
    PreDraft,
    RecyclingDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    ReverseProcess,
    SampleResult,
    SequentialSampler,
    SpeculativeSampler,
    X0Jacobian,
    ZeroGuess,
)
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.initial_guess import X0Guess
from specpolicy.speculative.schedulers import X0Thresholding
from specpolicy.speculative.verifiers import Verifier

DIM, STEPS = 4, 30
BASIS = torch.linalg.qr(torch.randn(DIM, 2, generator=torch.Generator().manual_seed(3)))[0]
JACOBIAN = X0Jacobian(torch.linspace(0.1, 0.8, STEPS)[:, None] * torch.tensor([1.0, 0.6]), BASIS)
DRAFTERS = [
    FreeDrafter(),
    FrozenDrafter(),
    LinearDrafter(JACOBIAN),
    RecyclingDrafter(),
    RecyclingDrafter(JACOBIAN),
    RecyclingDrafter(JACOBIAN, trust=float("inf")),
]


def _name(part: object) -> str:
    """A class's name: an object's own text may hold an address, which differs between the processes of a run."""
    return part.__name__ if isinstance(part, type) else type(part).__name__


CASES = [
    (drafter, verifier, guess)
    for drafter, verifier, guess in itertools.product(
        DRAFTERS, (ReflectionVerifier, ResidualVerifier, BlockVerifier), (None, ZeroGuess())
    )
    if verifier.causal or not drafter.recycles
]


def batched(sampler: SpeculativeSampler, target: Callable[..., torch.Tensor], noise: torch.Tensor, seed: int,
            cond: torch.Tensor) -> SampleResult:  # fmt: skip
    """Through the rounds of a batch, which may be of one chain."""
    *_, last = sampler.rounds(target, noise, cond, [torch.Generator().manual_seed(seed)], record=True)
    return last.result()


@pytest.mark.parametrize(("drafter", "verifier", "guess"), CASES, ids=_name)
def test_equal_seeds_give_equal_chains(
    drafter: Drafter, verifier: Callable[[], Verifier], guess: X0Guess | None
) -> None:
    scheduler, process = ddpm(STEPS)
    target, cond = mixture(scheduler, DIM), torch.full((1, 1), 0.1)
    sampler = SpeculativeSampler(process, drafter, verifier(), window=9, initial_guess=guess)
    for seed in range(3):
        noise = torch.randn(1, DIM, generator=torch.Generator().manual_seed(50 + seed), dtype=torch.float64)
        wanted = batched(sampler, target, noise, seed, cond)
        got = sampler(target, noise, cond, [torch.Generator().manual_seed(seed)], record=True)
        for field in dataclasses.fields(SampleResult):
            one, other = getattr(got, field.name), getattr(wanted, field.name)
            assert (one is None) == (other is None), field.name
            if one is not None:
                torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9, msg=field.name)


def test_a_shared_generator_draws_the_same_numbers() -> None:
    scheduler, process = ddpm(STEPS)
    target, cond = mixture(scheduler, DIM), torch.zeros(1, 1)
    noise = torch.randn(1, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampler = SpeculativeSampler(process, RecyclingDrafter(JACOBIAN), ReflectionVerifier(), window=12)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    *_, last = sampler.rounds(target, noise, cond, generators[0])
    got = sampler(target, noise, cond, generators[1])
    torch.testing.assert_close(got.sample, last.result().sample, atol=1e-9, rtol=0)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize("drafter", [FreeDrafter(), RecyclingDrafter(JACOBIAN)], ids=_name)
def test_predrafts_are_verified_as_in_a_batch(drafter: Drafter) -> None:
    """Two chains of a batch, and each of them alone, from the same pre-draft and the same streams."""
    scheduler, process = ddpm(STEPS)
    target, (old, new) = mixture(scheduler, DIM), (torch.zeros(2, 1), torch.full((2, 1), 0.05))
    sampler = SpeculativeSampler(process, drafter, ReflectionVerifier(), window=9)
    noise = torch.randn(2, DIM, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    draft = sampler.predraft(target, noise, old, [torch.Generator().manual_seed(each) for each in (1, 2)])
    wanted = sampler(target, noise, new, [torch.Generator().manual_seed(each) for each in (3, 4)], predraft=draft)
    for row in range(2):
        one = PreDraft(*(part[:, row : row + 1] for part in (draft.states, draft.x0, draft.noise)))
        got = sampler(target, one.start, new[:1], [torch.Generator().manual_seed(3 + row)], predraft=one)
        torch.testing.assert_close(got.sample[0], wanted.sample[row], atol=1e-8, rtol=0)
        assert got.replayed is not None and wanted.replayed is not None
        assert (int(got.replayed), int(got.passes)) == (int(wanted.replayed[row]), int(wanted.passes[row]))


def test_steps_of_all_kinds_of_chains() -> None:
    """Clipped, with weights of the unclipped x̂0, with a carried state, and deterministic: as in a batch of two."""
    scheduler, process = ddpm(STEPS)
    target = mixture(scheduler, DIM)
    few = DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    few.set_timesteps(7)
    kinds = [
        process,
        dataclasses.replace(process, thresholding=X0Thresholding(clip=0.4)),
        ReverseProcess.from_scheduler(few, 7, eta=0.5),
        ReverseProcess.deterministic(few),
        dataclasses.replace(process, carried=torch.full((STEPS,), 0.02, dtype=torch.float64)),
    ]
    noise = torch.randn(2, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for kind in kinds:
        sampler, cond = SequentialSampler(kind), torch.zeros(2, 1)
        wanted = sampler(target, noise, cond, [torch.Generator().manual_seed(each) for each in (5, 6)], record=True)
        got = sampler(target, noise[:1], cond[:1], [torch.Generator().manual_seed(5)], record=True)
        assert got.trajectory is not None and wanted.trajectory is not None
        torch.testing.assert_close(got.trajectory[:, 0], wanted.trajectory[:, 0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("verifier", [ReflectionVerifier, ResidualVerifier])
def test_the_innovations_of_chains_sampled_one_by_one(verifier: Callable[[], Verifier]) -> None:
    scheduler, process = ddpm(8)
    target, count = mixture(scheduler, 2), 150
    jacobian = X0Jacobian(torch.full((8, 2), 0.5))
    sampler = SpeculativeSampler(process, RecyclingDrafter(jacobian), verifier(), window=6, initial_guess=ZeroGuess())
    noise, generator = chains(count, 2)
    results = [sampler(target, each[None], torch.zeros(1, 1), generator, record=True) for each in noise]
    together = SampleResult(
        *(torch.cat([getattr(each, name) for each in results]) for name in ("sample", "passes", "evaluations")),
        trajectory=torch.cat([each.trajectory for each in results if each.trajectory is not None], dim=1),
        x0=torch.cat([each.x0 for each in results if each.x0 is not None], dim=1),
    )
    assert check_exactness(process, together).smallest > 1e-3
    assert sum(int(each.passes) for each in results) < 8 * count


def test_a_network_that_fails_is_named() -> None:
    _, process = ddpm(10)
    noise = torch.zeros(1, 3)
    for sampler in (SpeculativeSampler(process), SequentialSampler(process)):
        with pytest.raises(DenoiserError, match="NaN or infinity at timesteps"):
            sampler(lambda x, t, c: torch.full_like(x, torch.inf), noise)
        with pytest.raises(DenoiserError, match="must return the shape of its input"):
            sampler(lambda x, t, c: x[:, :2], noise)
        with pytest.raises(DenoiserError, match="floating-point"):
            sampler(lambda x, t, c: x.long(), noise)


def test_jacobians_that_diverge_fall_back_to_the_last_x0() -> None:
    scheduler, process = ddpm(STEPS)
    target, wild = mixture(scheduler, DIM), X0Jacobian(torch.full((STEPS, DIM), 1e30))
    noise = torch.randn(1, DIM, generator=torch.Generator().manual_seed(2))
    result = SpeculativeSampler(process, LinearDrafter(wild), ReflectionVerifier(), window=9)(
        target, noise, torch.zeros(1, 1), torch.Generator().manual_seed(0)
    )
    assert bool(result.sample.isfinite().all())
