"""What is fitted: jacobian and initial_guesses that are known, and what is never fitted to the chains that judge it."""

from __future__ import annotations

import pytest
import torch
from calibration_fakes import gaussian, process_of, recorded
from diffusers import DDPMScheduler

from specpolicy import FreeDrafter, LinearDrafter, LinearGuess, SpeculativeSampler, ZeroGuess
from specpolicy.calibration.fit import (
    RecordedChains,
    early_x0,
    fit_calibration,
    fit_guess,
    fit_jacobian,
    fit_linear_guess,
    guess_error,
    mean_distance,
    sensitivity,
    x0_increments,
)
from specpolicy.speculative.exactness import check_exactness

STEPS = 40


@pytest.fixture(scope="module")
def chains() -> RecordedChains:
    return recorded(gaussian(), STEPS, 600)


def test_the_jacobian_of_gaussian_data_are_found(chains: RecordedChains) -> None:
    target, process = gaussian(), process_of(STEPS)
    jacobian = fit_jacobian(process, chains, ridge=1e-4)
    alpha = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").alphas_cumprod[process.timesteps][:, None]
    assert jacobian.basis is not None
    for k in range(1, STEPS - 1):
        true = target.basis @ torch.diag(target.slope(alpha)[k]) @ target.basis.T
        found = jacobian.basis @ torch.diag(jacobian.values[k]) @ jacobian.basis.T
        torch.testing.assert_close(found, true, atol=0.1, rtol=0)
    assert mean_distance(process, jacobian, chains, 4) < 0.2 * mean_distance(process, None, chains, 4)


def test_fitted_jacobian_save_passes_and_stay_exact(chains: RecordedChains) -> None:
    target, process = gaussian(), process_of(STEPS)
    drafters, passes = (FreeDrafter(), LinearDrafter(fit_jacobian(process, chains))), []
    for drafter in drafters:
        generator = torch.Generator().manual_seed(1)
        noise, cond = torch.randn(300, 4, generator=generator), torch.randn(300, 2, generator=generator)
        sampler = SpeculativeSampler(process, drafter, window=STEPS)
        result = sampler(target, noise.double(), cond=cond.double(), generator=generator, record=True)
        assert check_exactness(process, result).smallest > 1e-3
        passes.append(result.passes.double().mean())
    assert passes[1] < 0.6 * passes[0]


def test_the_weightiest_directions_are_kept(chains: RecordedChains) -> None:
    target, process = gaussian(), process_of(STEPS)
    two = fit_jacobian(process, chains, rank=2)
    assert two.basis is not None and two.basis.shape == (4, 2)
    inside = target.basis[:, :2].T @ two.basis  # the widest directions of the data come first
    assert torch.linalg.svdvals(inside).min() > 0.95
    everything, nothing = (
        mean_distance(process, fit_jacobian(process, chains), chains, 4),
        mean_distance(process, None, chains, 4),
    )
    assert everything < mean_distance(process, two, chains, 4) < nothing


def test_innovations_are_measured_from_the_mean_path(chains: RecordedChains) -> None:
    process = process_of(STEPS)
    innovation, change = x0_increments(process, chains, 1)
    begin, drawn = chains.states[:-2], torch.arange(STEPS - 1)
    a, b = process.a.float()[drawn, None, None], process.b.float()[drawn, None, None]
    torch.testing.assert_close(innovation, chains.states[1:-1] - a * begin - b * chains.x0[:-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(change, chains.x0[1:] - chains.x0[:-1])
    assert sensitivity(process)[-1] == 0, "the last step has no noise"


def test_x0_that_follows_the_observation_is_opened_by_a_regression(chains: RecordedChains) -> None:
    process = process_of(STEPS)
    choice = fit_guess(process, chains)
    assert choice.name.startswith("linear") and choice.held_out[choice.name] == min(choice.held_out.values())
    assert choice.held_out[choice.name] < choice.held_out["zero"]
    assert isinstance(choice.fit(process, chains), LinearGuess)


def test_a_linear_dependence_is_opened_linearly() -> None:
    process, chains = process_of(STEPS), recorded(gaussian(), STEPS, 200)
    x0 = (0.5 * chains.cond @ torch.ones(2, 4) + 0.3).repeat(STEPS, 1, 1)
    straight = RecordedChains(chains.states, x0, chains.cond, chains.group)
    initial_guess = fit_linear_guess(process, straight, ridge=1e-6)
    assert isinstance(initial_guess, LinearGuess)
    torch.testing.assert_close(initial_guess.x0(x0[0], chains.cond), x0[0], atol=1e-3, rtol=1e-3)
    assert guess_error(process, initial_guess, straight) < 1e-2
    x0 += 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(4))
    blurred = RecordedChains(chains.states, x0, chains.cond, chains.group)
    assert fit_guess(process, blurred).name.startswith("linear")


def test_x0_that_has_nothing_to_do_with_the_observation_is_opened_by_zero() -> None:
    process, chains = process_of(STEPS), recorded(gaussian(), STEPS, 100)
    noise = torch.randn(STEPS, 100, 4, generator=torch.Generator().manual_seed(2))
    unrelated = RecordedChains(chains.states, noise, chains.cond, chains.group)
    assert fit_guess(process, unrelated).name == "zero"


def test_the_x0_to_open_with_is_weighted_towards_the_sensitive_steps(chains: RecordedChains) -> None:
    process = process_of(STEPS)
    weight = sensitivity(process)[:16].float() ** 2
    expected = sum(weight[k] * chains.x0[k] for k in range(16)) / weight.sum()
    torch.testing.assert_close(early_x0(process, chains), expected)


def test_groups_are_never_on_both_sides(chains: RecordedChains) -> None:
    kept, judged = chains.split(0.2)
    assert not set(kept.group.tolist()) & set(judged.group.tolist())
    assert len(kept) + len(judged) == len(chains) and 0.1 < len(judged) / len(chains) < 0.3
    one = RecordedChains(chains.states, chains.x0, chains.cond, torch.zeros_like(chains.group))
    with pytest.raises(ValueError, match="one episode or observation"):
        one.split()


def test_a_calibration_has_its_errors_on_other_chains(chains: RecordedChains) -> None:
    calibration = fit_calibration(process_of(STEPS), chains, {"seed": 5})
    about = calibration.about
    assert about["seed"] == 5 and about["num_inference_steps"] == STEPS and about["chains"] == 600
    for lag in ("lag 1", "lag 4"):
        assert about["held_out"]["distance"][lag]["linear"] < 0.7 * about["held_out"]["distance"][lag]["free"]
    assert not isinstance(calibration.initial_guess, ZeroGuess)


def test_chains_of_another_process_are_refused(chains: RecordedChains) -> None:
    with pytest.raises(ValueError, match="chains of 40 steps for a process of 20"):
        fit_jacobian(process_of(20), chains)
    with pytest.raises(ValueError, match="longer than the lags"):
        fit_jacobian(process_of(STEPS), chains, lags=STEPS)
