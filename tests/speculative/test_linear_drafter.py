"""The linear drafter: what it drafts, what a good Jacobian saves, and that a bad one only costs evaluations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixtures import Mixture, chains, ddpm, mixture

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    LinearDrafter,
    LinearGuess,
    RecyclingDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    SpeculativeSampler,
    X0Guess,
    X0Jacobian,
    ZeroGuess,
)
from specpolicy.speculative.compiled.sampler import CompiledSampler
from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.linear_chain import MultiStepTransition
from specpolicy.speculative.verifiers import Verifier


def jacobian_of(steps: int, dim: int, scale: float = 1.0, rank: int | None = None) -> X0Jacobian:
    """Gains that fit no network: random sizes up to ``scale`` in a random basis."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0][:, : rank or dim]
    return X0Jacobian(
        scale * torch.rand(steps, rank or dim, generator=generator, dtype=torch.float64), basis.contiguous()
    )


def start_at(k: list[int], last_eval_k: list[int], steps: int, dim: int, window: int) -> DraftStart:
    generator = torch.Generator().manual_seed(5)
    n = len(k)
    x, anchor, x0 = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(3))
    noise = torch.randn(n, window, dim, generator=generator, dtype=torch.float64)
    chain = MultiStepTransition(ddpm(steps)[1].to("cpu", torch.float64))
    return DraftStart(chain, torch.tensor(k), x, torch.tensor(last_eval_k), anchor, x0, noise, None)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_draft_is_the_loop(rank: int | None) -> None:
    """x̂0 = f + J (x − x̄) at each step, where x̄ is the mean from the anchor on, however far back that is."""
    jacobian, start = jacobian_of(20, 4, rank=rank), start_at([0, 6, 13], [0, 4, 13], 20, 4, window=6)
    assert jacobian.basis is not None
    draft, process = LinearDrafter(jacobian).draft(start), start.chain.process
    for row in range(3):
        x, f, mean = start.x[row], start.last_eval_x0[row], start.last_eval_x[row]
        for k in range(int(start.last_eval_k[row]), int(start.k[row])):
            mean = process.a[k] * mean + process.b[k] * f
        for step in range(6):
            k = int(start.k[row]) + step
            torch.testing.assert_close(draft.states[row, step], x)
            x0 = f + jacobian.basis @ (jacobian.values[k] * (jacobian.basis.T @ (x - mean)))
            torch.testing.assert_close(draft.x0[row, step], x0)
            x = process.a[k] * x + process.b[k] * x0 + process.sigma[k] * start.noise[row, step]
            mean = process.a[k] * mean + process.b[k] * f
        torch.testing.assert_close(draft.states[row, 6], x)


def test_without_jacobian_it_is_the_free_drafter() -> None:
    scheduler, process = ddpm(40)
    target, zero = mixture(scheduler, 6), X0Jacobian(torch.zeros(40, 6, dtype=torch.float64))
    start = start_at([0, 9], [0, 7], 40, 6, window=8)
    free, linear = FreeDrafter().draft(start), LinearDrafter(zero).draft(start)
    torch.testing.assert_close(linear.states, free.states, rtol=0, atol=1e-12)
    torch.testing.assert_close(linear.x0, free.x0.expand_as(linear.x0), rtol=0, atol=0)
    results = []
    for drafter in (FreeDrafter(), LinearDrafter(zero)):
        noise, generator = chains(20, 6)
        results.append(SpeculativeSampler(process, drafter, window=9)(target, noise, generator=generator))
    torch.testing.assert_close(results[0].sample, results[1].sample, rtol=0, atol=1e-9)
    assert results[0].passes.tolist() == results[1].passes.tolist()


@pytest.mark.parametrize("turned", [False, True])
def test_on_gaussian_data_the_right_jacobian_leave_nothing_to_reject(turned: bool) -> None:
    """There x̂0 is linear in x, so that the drafts are the target itself: one pass to begin with and one round."""
    scheduler, process = ddpm(50)
    scale, alpha = 0.3, scheduler.alphas_cumprod.double()[process.timesteps]
    slope = alpha.sqrt() * scale**2 / (alpha * scale**2 + 1 - alpha)
    basis = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0] if turned else None
    drafter = LinearDrafter(X0Jacobian(slope[:, None].expand(50, 3).contiguous(), basis))
    target = Mixture(torch.tensor([[0.4, -0.7, 0.1]]), scale, scheduler.alphas_cumprod.double())
    noise, generator = chains(200, 3)
    result = SpeculativeSampler(process, drafter, window=50)(target, noise, generator=generator, record=True)
    assert result.passes.tolist() == [2] * 200 and result.acceptance == 1.0
    free = SpeculativeSampler(process, FreeDrafter(), window=50)(target, *unconditioned(noise, generator))
    assert free.passes.double().mean() > 4
    assert check_exactness(process, result).smallest > 1e-3


def unconditioned(noise: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, None, torch.Generator]:
    return noise, None, generator


# Of a mean 0.9 away from the data, and no initial guess at all.
OPENINGS = [None, ZeroGuess(), LinearGuess(torch.full((1, 1), -2.0), torch.full((1,), 0.9))]


def smallest_p(
    jacobian: X0Jacobian,
    initial_guess: X0Guess | None,
    verifier: Verifier,
    dim: int,
    steps: int,
    window: Any,
    batch: int,
) -> float:
    scheduler, process = ddpm(steps)
    noise, generator = chains(batch, dim, seed=steps)
    cond = torch.rand(batch, 1, generator=generator, dtype=torch.float64)
    sampler = SpeculativeSampler(process, LinearDrafter(jacobian), verifier, window, initial_guess)
    assert sampler.exact
    result = sampler(mixture(scheduler, dim), noise, cond=cond, generator=generator, record=True)
    return check_exactness(process, result).smallest


@pytest.mark.parametrize("initial_guess", OPENINGS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize(("steps", "window", "batch"), [(8, 7, 12_000), (12, 4, 8_000)])
def test_wrong_jacobian_and_initial_guess_do_not_spoil_the_law(
    initial_guess: X0Guess | None, scale: float, steps: int, window: int, batch: int
) -> None:
    assert smallest_p(jacobian_of(steps, 1, scale), initial_guess, BlockVerifier(), 1, steps, window, batch) > 1e-3


@pytest.mark.parametrize("verifier", [ReflectionVerifier(), ResidualVerifier(), BlockVerifier()])
def test_wrong_jacobian_in_two_dimensions_with_every_verifier(verifier: Verifier) -> None:
    window = [1 + k % 7 for k in range(16)]
    assert smallest_p(jacobian_of(16, 2, 1.5), ZeroGuess(), verifier, 2, 16, window, 4_000) > 1e-3


def test_low_rank_jacobian_in_many_dimensions_are_exact() -> None:
    assert smallest_p(jacobian_of(100, 16, 0.7, rank=5), ZeroGuess(), BlockVerifier(), 16, 100, 24, 200) > 1e-3


@pytest.mark.parametrize("window", [9, [2 + k % 5 for k in range(50)]])
def test_a_chain_does_not_depend_on_its_neighbours(window: Any) -> None:
    scheduler, process = ddpm(50)
    weight = torch.randn(3, 1, dtype=torch.float64)
    initial_guess = LinearGuess(weight, torch.zeros(3, dtype=torch.float64))
    sampler = SpeculativeSampler(process, LinearDrafter(jacobian_of(50, 3)), window=window, initial_guess=initial_guess)
    noise, _ = chains(6, 3, seed=3)
    cond = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)[:, None]

    def sampled(order: list[int]) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in order]
        return sampler(mixture(scheduler, 3), noise[order], cond=cond[order], generator=generators)

    together = sampled([0, 1, 2, 3, 4, 5])
    assert len(set(together.passes.tolist())) > 1, "the chains must finish at different times"
    for order in ([4], [2, 5], [5, 0, 3]):
        apart = sampled(order)
        torch.testing.assert_close(apart.sample, together.sample[order], rtol=1e-9, atol=1e-9)
        assert apart.passes.tolist() == together.passes[order].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_and_event_shapes(dtype: torch.dtype) -> None:
    scheduler, process = ddpm(30)
    noise = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    sampler = SpeculativeSampler(process, LinearDrafter(jacobian_of(30, 12)), window=6, initial_guess=ZeroGuess())
    result = sampler(mixture(scheduler, 12), noise, generator=torch.Generator().manual_seed(1))
    assert result.sample.shape == noise.shape and result.sample.dtype == dtype and result.sample.isfinite().all()


@pytest.mark.parametrize(("steps", "dim"), [(19, 4), (20, 3)])
def test_jacobian_of_another_process_are_refused(steps: int, dim: int) -> None:
    scheduler, process = ddpm(20)
    sampler = SpeculativeSampler(process, LinearDrafter(jacobian_of(steps, dim)))
    with pytest.raises(ValueError, match=rf"for {steps} steps and events of {dim} numbers.* 20 steps and its events 4"):
        sampler(mixture(scheduler, 4), torch.randn(2, 4))


def test_it_says_what_it_is() -> None:
    assert repr(LinearDrafter(jacobian_of(20, 4, rank=2))) == "LinearDrafter(K=20, rank=2)"


# ---- Jacobians that overflow


@pytest.mark.parametrize("scale", [1e3, 1e20, float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("make", "verifier"),
    [(LinearDrafter, BlockVerifier()), (LinearDrafter, ReflectionVerifier()), (RecyclingDrafter, ResidualVerifier())],
)
def test_a_jacobian_that_overflows_costs_evaluations_and_never_a_nan(
    scale: float, make: Any, verifier: Verifier
) -> None:
    scheduler, process = ddpm(12)
    asked: list[float] = []
    target = mixture(scheduler, 3)

    def network(x, timestep, cond):  # type: ignore[no-untyped-def]
        asked.append(float(x.abs().max()))
        return target(x, timestep, cond)

    drafter = make(X0Jacobian(torch.full((12, 3), scale, dtype=torch.float32)))
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    eager = SpeculativeSampler(process, drafter, verifier, 6, ZeroGuess())
    for sampler in (eager, CompiledSampler(eager, "plain")):
        result = sampler(network, noise, generator=torch.Generator().manual_seed(2), record=True)
        assert torch.isfinite(result.sample).all()
        assert result.trajectory is not None and torch.isfinite(result.trajectory).all()
        assert (result.passes <= 12).all()
    assert all(size < 1e6 for size in asked)  # NaN is not


class Diverging(Drafter):
    """Its x̂0 is infinite as soon as the drafted state is positive: windows end there."""

    def draft(self, start: DraftStart) -> Draft:
        process, states, x0s = start.chain.process, [start.x], []
        for step in range(start.noise.shape[1]):
            k = (start.k + step).clamp(max=process.num_steps - 1)
            x0s.append(torch.where(states[-1] > 0, torch.inf, start.last_eval_x0))
            sane = x0s[-1].nan_to_num(posinf=0.0)
            states.append(process.step(states[-1], sane, k, start.noise[:, step]))
        return Draft(torch.stack(states, 1), torch.stack(x0s, 1))


@pytest.mark.parametrize("verifier", [BlockVerifier(), ReflectionVerifier()])
def test_windows_that_end_before_an_overflow_are_exact(verifier: Verifier) -> None:
    """An x̂0 is known before the noise of its step: a length found from it does not spoil the distribution."""
    scheduler, process = ddpm(8)
    noise, generator = chains(20_000, 1)
    result = SpeculativeSampler(process, Diverging(), verifier, 6)(
        mixture(scheduler, 1, scale=0.3), noise, generator=generator, record=True
    )
    assert result.proposed is not None
    assert len(set(result.proposed.flatten().tolist()) - {-1}) > 3, "windows were cut"
    assert check_exactness(process, result).smallest > 1e-3


def test_a_jacobian_that_diverges_is_exact() -> None:
    scheduler, process = ddpm(8)
    noise, generator = chains(20_000, 1)
    drafter = LinearDrafter(X0Jacobian(torch.full((8, 1), 300.0, dtype=torch.float64)))
    result = SpeculativeSampler(process, drafter, window=6)(
        mixture(scheduler, 1, scale=0.3), noise, generator=generator, record=True
    )
    assert check_exactness(process, result).smallest > 1e-3
