"""Initial guesses: what they predict, the evaluation that they save, and that wrong ones only cost evaluations."""

from __future__ import annotations

import pytest
import torch
from mixtures import chains, ddpm, mixture

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    FrozenDrafter,
    LinearGuess,
    SpeculativeSampler,
    X0Guess,
    ZeroGuess,
)
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.exactness import check_exactness


def linear(dim: int = 1, numbers: int = 1) -> LinearGuess:
    generator = torch.Generator().manual_seed(0)
    return LinearGuess(torch.randn(dim, numbers, generator=generator), torch.randn(dim, generator=generator))


def test_zero_is_zero() -> None:
    assert not ZeroGuess().x0(torch.randn(3, 2, 4), None).any()


def test_linear_is_the_regression() -> None:
    initial_guess, cond = linear(6, 3), torch.randn(5, 3)
    found = initial_guess.x0(torch.zeros(5, 2, 3), cond)
    torch.testing.assert_close(found, (cond @ initial_guess.weight.T + initial_guess.offset).view(5, 2, 3))


@pytest.mark.parametrize("initial_guess", [linear(4, 6)])
def test_conditions_may_have_any_shape_and_precision(initial_guess: X0Guess) -> None:
    cond = torch.randn(3, 2, 3)
    single, double = (
        initial_guess.x0(torch.zeros(3, 2, 2, dtype=d), cond.to(d)) for d in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single, initial_guess.x0(torch.zeros(3, 4), cond.flatten(1)).view(3, 2, 2))
    torch.testing.assert_close(double.float(), single)


GUESSES = [ZeroGuess(), linear()]


@pytest.mark.parametrize("drafter", [FreeDrafter(), FrozenDrafter()])
@pytest.mark.parametrize("initial_guess", GUESSES, ids=lambda each: type(each).__name__)
def test_any_initial_guess_is_exact(initial_guess: X0Guess, drafter: Drafter) -> None:
    """Their guesses have nothing to do with the data; the distribution stays, and so do all states on the way."""
    scheduler, process = ddpm(8)
    noise, generator = chains(12_000, 1)
    cond = torch.rand(12_000, 1, generator=generator, dtype=torch.float64)
    sampler = SpeculativeSampler(process, drafter, BlockVerifier(), 7, initial_guess)
    result = sampler(mixture(scheduler, 1), noise, cond=cond, generator=generator, record=True)
    assert check_exactness(process, result).smallest > 1e-3


def test_an_initial_guess_saves_the_first_pass() -> None:
    """Free spends a pass a round, and with an initial guess nothing besides; the first x̂0 is the network's."""
    scheduler, process = ddpm(50)
    target, (noise, generator) = mixture(scheduler, 4), chains(64, 4)
    result = SpeculativeSampler(process, initial_guess=ZeroGuess())(target, noise, generator=generator, record=True)
    assert result.accepted is not None and result.x0 is not None
    assert (result.passes == (result.accepted >= 0).sum(0)).all()
    first = torch.zeros(64, dtype=torch.long)
    torch.testing.assert_close(result.x0[0], process.x0(noise, target(noise, process.timesteps[first]), first))


def test_ragged_batches_open_row_by_row() -> None:
    scheduler, process = ddpm(30)
    sampler = SpeculativeSampler(process, window=6, initial_guess=linear(3, 2))
    noise, _ = chains(5, 3)
    cond = torch.randn(5, 2, dtype=torch.float64)

    def sampled(order: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in order]
        return sampler(mixture(scheduler, 3), noise[order], cond=cond[order], generator=generators).sample

    together = sampled([0, 1, 2, 3, 4])
    for order in ([3], [4, 1]):
        torch.testing.assert_close(sampled(order), together[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("initial_guess", [linear(2, 3)])
def test_other_conditions_are_refused(initial_guess: X0Guess) -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"cond is \(4, 5\); this initial guess was fitted on tensors of 3 numbers"):
        initial_guess.x0(x, torch.zeros(4, 5))
    with pytest.raises(ValueError, match="cond is NoneType; this initial guess"):
        initial_guess.x0(x, None)
    with pytest.raises(ValueError, match="cond is dict; this initial guess"):
        initial_guess.x0(x, {"observation": torch.zeros(4, 3)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_guess_that_overflows_counts_as_zero(value: float) -> None:
    scheduler, process = ddpm(12)
    overflows = LinearGuess(torch.zeros(3, 1), torch.full((3,), value))
    results = []
    for guess in (overflows, ZeroGuess()):
        noise, generator = chains(5, 3)
        sampler = SpeculativeSampler(process, FreeDrafter(), window=4, initial_guess=guess)
        results.append(sampler(mixture(scheduler, 3), noise, cond=torch.zeros(5, 1), generator=generator))
    assert torch.isfinite(results[0].sample).all()
    assert torch.equal(results[0].sample, results[1].sample)
