"""Windows that adapt: exact, as cheap as a sequential sampler where drafts are hopeless, and long elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from mixtures import chains, ddpm, mixture

from specpolicy import (
    AdaptiveWindow,
    BlockVerifier,
    Drafter,
    FreeDrafter,
    FrozenDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    SequentialSampler,
    SpeculativeSampler,
    ZeroGuess,
)
from specpolicy.speculative.chain_batch import StateBuffer
from specpolicy.speculative.drafters.base import Draft, DraftStart
from specpolicy.speculative.exactness import check_exactness

DRAFTERS = [FreeDrafter(), FrozenDrafter()]
VERIFIERS = [BlockVerifier(), ResidualVerifier(), ReflectionVerifier()]


def erratic(x: torch.Tensor, timestep: torch.Tensor, cond: Any) -> torch.Tensor:
    """An x̂0 that forgets everything from one step to the next, as a network in many dimensions seems to."""
    return 20 * torch.sin(1e4 * x + timestep.view(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize(
    ("drafter", "verifier", "dim", "steps", "scale", "batch"),
    [
        *[(drafter, verifier, 1, 8, 0.3, 6_000) for drafter in DRAFTERS for verifier in VERIFIERS],
        (FreeDrafter(), BlockVerifier(), 2, 20, 0.1, 2_500),
    ],
)
def test_innovations_are_standard_normal(
    drafter: Drafter, verifier: Any, dim: int, steps: int, scale: float, batch: int
) -> None:
    scheduler, process = ddpm(steps)
    noise, generator = chains(batch, dim, seed=steps)
    sampler = SpeculativeSampler(process, drafter, verifier, AdaptiveWindow(6, min_acceptance=0.4))
    result = sampler(mixture(scheduler, dim, scale=scale), noise, generator=generator, record=True)
    assert check_exactness(process, result).smallest > 1e-3
    assert result.proposed is not None
    assert len(set(result.proposed.flatten().tolist()) - {-1}) > 3, "the windows did adapt"


class AcceptsEverything(BlockVerifier):
    def judge(self, comparison: Any, uniform: torch.Tensor) -> Any:
        verdict = super().judge(comparison, uniform)
        return replace(verdict, accepted=comparison.length)


def test_the_test_notices_a_wrong_verifier_behind_these_windows() -> None:
    scheduler, process = ddpm(8)
    noise, generator = chains(6_000, 1)
    sampler = SpeculativeSampler(process, FreeDrafter(), AcceptsEverything(), AdaptiveWindow(6, min_acceptance=0.1))
    result = sampler(mixture(scheduler, 1, scale=0.3), noise, generator=generator, record=True)
    assert check_exactness(process, result).smallest < 1e-12


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_hopeless_drafts_cost_no_more_than_the_sequential_sampler(drafter: Drafter) -> None:
    _, process = ddpm(50, prediction_type="sample")
    noise = torch.randn(2, 3072, generator=torch.Generator().manual_seed(0))
    plain = SequentialSampler(process)(erratic, noise, generator=torch.Generator().manual_seed(1))
    result = SpeculativeSampler(process, drafter, window=AdaptiveWindow())(
        erratic, noise, generator=torch.Generator().manual_seed(1)
    )
    assert result.accepted is not None and result.proposed is not None
    assert (result.passes <= 1.05 * plain.passes).all() and (result.evaluations <= 1.05 * plain.evaluations).all()
    fixed = SpeculativeSampler(process, drafter, window=8)(erratic, noise)
    assert (fixed.evaluations > 4 * plain.evaluations).all(), "what a fixed window wastes here"


def test_a_fixed_window_of_one_pays_two_rows_a_step_where_nothing_is_accepted() -> None:
    """An evaluation a step: the round that rejects still advances by one; but each evaluates two points."""
    _, process = ddpm(50, prediction_type="sample")
    noise = torch.randn(2, 3072, generator=torch.Generator().manual_seed(0))
    free = SpeculativeSampler(process, FreeDrafter(), window=1)(erratic, noise)
    frozen = SpeculativeSampler(process, FrozenDrafter(), window=1)(erratic, noise)
    assert (free.passes == 50).all() and (free.evaluations > 90).all()
    assert (frozen.passes == 50).all() and (frozen.evaluations == 50).all()


def test_drafting_begins_again_when_there_is_hope() -> None:
    """A target that is erratic in the first half of the chain and constant in the second."""
    _, process = ddpm(100, prediction_type="sample")
    half = int(process.timesteps[50])

    def target(x: torch.Tensor, timestep: torch.Tensor, cond: Any) -> torch.Tensor:
        return torch.where((timestep > half)[:, None], erratic(x, timestep, cond), torch.full_like(x, 0.5))

    noise, generator = chains(2, 512)
    result = SpeculativeSampler(process, window=AdaptiveWindow(16))(target, noise, generator=generator)
    assert result.start is not None and result.proposed is not None
    early, late = (result.start >= 2) & (result.start < 48), result.start >= 53
    assert (result.proposed[early] == 0).all() and result.proposed[late].max() == 16
    assert (result.passes <= 60).all()


@pytest.mark.parametrize("dim", [8, 112])
def test_rows_are_saved_for_few_more_passes(dim: int) -> None:
    scheduler, process = ddpm(100)
    target, counts = mixture(scheduler, dim), []
    for window in (24, AdaptiveWindow(40)):
        noise, generator = chains(12, dim, seed=5)
        result = SpeculativeSampler(process, window=window)(target, noise, generator=generator)
        counts.append((result.passes.double().mean(), result.evaluations.double().mean()))
    (passes, rows), (adapted_passes, adapted_rows) = counts
    assert adapted_passes < 1.35 * passes and adapted_rows < rows


class Offset(Drafter):
    """Off by a fixed x̂0 from the anchor's: the measured distance must be that of the drafter, not of the anchor."""

    def draft(self, start: DraftStart) -> Draft:
        x0 = (start.last_eval_x0 + 100.0)[:, None]
        return Draft(start.chain.draft(start.k, start.x, x0[:, 0], start.noise), x0)


def test_a_bad_drafter_is_not_trusted_although_the_target_is_calm() -> None:
    _, process = ddpm(40, prediction_type="sample")
    noise, generator = chains(2, 16)
    result = SpeculativeSampler(process, Offset(), window=AdaptiveWindow())(
        lambda x, t, c: torch.full_like(x, 0.5), noise, generator=generator
    )
    assert (result.passes <= 42).all() and (result.evaluations <= 44).all()


def test_a_chain_does_not_depend_on_its_neighbours() -> None:
    scheduler, process = ddpm(50)
    target, sampler = mixture(scheduler, 3), SpeculativeSampler(process, window=AdaptiveWindow(8))
    noise, _ = chains(4, 3, seed=3)
    together = sampler(target, noise, generator=[torch.Generator().manual_seed(seed) for seed in range(4)])
    alone = sampler(target, noise[2:3], generator=[torch.Generator().manual_seed(2)])
    torch.testing.assert_close(alone.sample, together.sample[2:3], rtol=1e-9, atol=1e-9)
    assert alone.passes[0] == together.passes[2]


def test_with_an_initial_guess_and_a_predraft() -> None:
    scheduler, process = ddpm(60)
    target, (noise, generator) = mixture(scheduler, 4), chains(6, 4)
    sampler = SpeculativeSampler(process, window=AdaptiveWindow(16, initial=8), initial_guess=ZeroGuess())
    drafted = sampler.predraft(target, noise, torch.zeros(6, 1), generator)
    result = sampler(target, drafted.start, torch.full((6, 1), 0.01), generator, predraft=drafted)
    assert torch.isfinite(result.sample).all() and (result.passes < 30).all()


@pytest.mark.parametrize("bad", [{"max_window": 0}, {"min_acceptance": 0.0}, {"min_acceptance": 1.0}, {"initial": 0}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        AdaptiveWindow(**bad)


# ---- following the rounds


@pytest.mark.parametrize("begin", [0, 17])
def test_rounds_are_the_call_and_the_trail_is_the_trajectory(begin: int) -> None:
    scheduler, process = ddpm(40)
    target, sampler = mixture(scheduler, 3), SpeculativeSampler(process, window=7)
    noise, _ = chains(5, 3)
    state_buffer, position, seen = StateBuffer(), begin, [noise]
    rounds = sampler.rounds(
        target, noise, generator=torch.Generator().manual_seed(1), begin=begin, state_buffer=state_buffer
    )
    for at in rounds:
        while position < int(at.k.min()):
            position += 1
            seen.append(state_buffer.take(position, at.x))
    assert position == process.num_steps
    whole = sampler.rounds(
        target, noise, generator=torch.Generator().manual_seed(1), begin=begin, record=True, state_buffer=None
    )
    *_, last = whole
    trajectory = last.result().trajectory
    assert trajectory is not None
    torch.testing.assert_close(torch.stack(seen[1:]), trajectory[begin + 1 :], rtol=0, atol=0)
    if begin == 0:
        called = sampler(target, noise, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(called.sample, seen[-1], rtol=0, atol=0)


@pytest.mark.parametrize("begin", [-1, 10])
def test_a_begin_off_the_chain_is_refused(begin: int) -> None:
    sampler = SpeculativeSampler(ddpm(10)[1])
    with pytest.raises(ValueError, match="positions of this chain"):
        next(sampler.rounds(lambda x, t, c: x, torch.randn(1, 2), begin=begin))


def test_starting_in_the_middle_is_exact() -> None:
    scheduler, process = ddpm(12)
    noise, generator = chains(6_000, 1)
    *_, last = SpeculativeSampler(process, window=4).rounds(
        mixture(scheduler, 1), noise, generator=generator, record=True, begin=5
    )
    result = last.result()
    assert result.trajectory is not None and result.x0 is not None
    tail = replace(
        process,
        **{name: getattr(process, name)[5:] for name in ("timesteps", "a", "b", "sigma", "from_state", "from_output")},
    )
    rest = replace(result, trajectory=result.trajectory[5:], x0=result.x0[5:])
    assert check_exactness(tail, rest).smallest > 1e-3
