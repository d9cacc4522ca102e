"""A chain drafted under one condition, verified under another, has the second's distribution; misuse is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mixtures import Mixture, chains, ddpm, mixture
from scipy import stats

from specpolicy import BlockVerifier, PreDraft, ReflectionVerifier, ResidualVerifier, SpeculativeSampler, Verifier
from specpolicy.speculative import sampler_call
from specpolicy.speculative.exactness import check_exactness, innovations
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.verifiers import AcceptedPrefix, DraftTargetGap


def smallest_p(
    sampler: SpeculativeSampler, target: Mixture, guess: torch.Tensor, cond: torch.Tensor, **call: object
) -> float:
    """The exactness test under ``cond``, and one along the line from the x̂0 under ``guess`` to that under ``cond``.

    x̂0 is evaluated afresh, so that no bookkeeping is trusted.
    """
    result = sampler(target, cond=cond, record=True, **call)  # type: ignore[arg-type]
    assert result.trajectory is not None
    process, x0, drafted = sampler.process, [], []
    for step in range(process.num_steps):
        k, x = torch.full((len(cond),), step), result.trajectory[step]
        x0.append(process.x0(x, target(x, process.timesteps[k], cond), k))
        drafted.append(process.x0(x, target(x, process.timesteps[k], guess), k))
    result = replace(result, x0=torch.stack(x0))
    z = innovations(process, result)
    line = (torch.stack(drafted) - torch.stack(x0))[: len(z)]
    along = ((z * line).sum(-1) / line.norm(dim=-1))[line.norm(dim=-1) > 1e-7].numpy()
    along_p = [2 * stats.norm.sf(abs(along.mean()) * len(along) ** 0.5), stats.kstest(along, "norm").pvalue]
    return min(check_exactness(process, result).smallest, *(2 * p for p in along_p)) if len(along) else 1.0


def after_predraft(
    verifier: Verifier, shift: float, dim: int, steps: int, batch: int, replay: int | None = None
) -> float:
    """Pre-draft under scattered conditions, sample under others that lie ``shift`` away, and test."""
    scheduler, process = ddpm(steps)
    target, sampler = mixture(scheduler, dim), SpeculativeSampler(process, verifier=verifier, window=6, replay=replay)
    noise, generator = chains(batch, dim, seed=steps)
    guess = torch.rand(batch, 1, generator=generator, dtype=torch.float64) - 0.5
    drafted = sampler.predraft(target, noise, guess, generator)
    true = guess + shift * torch.randn(batch, 1, generator=generator, dtype=torch.float64).sign()
    return smallest_p(sampler, target, guess, true, noise=drafted.start, generator=generator, predraft=drafted)


@pytest.mark.parametrize("verifier", [BlockVerifier(), ResidualVerifier(), ReflectionVerifier()])
@pytest.mark.parametrize("shift", [0.02, 0.2, 2.0])
@pytest.mark.parametrize(("dim", "steps", "batch"), [(1, 8, 10_000), (2, 20, 3_000)])
def test_the_sample_is_exact_at_the_true_condition(
    verifier: Verifier, shift: float, dim: int, steps: int, batch: int
) -> None:
    assert after_predraft(verifier, shift, dim, steps, batch) > 1e-3


@pytest.mark.parametrize("replay", [1, 3])
def test_a_partly_replayed_chain_is_exact(replay: int) -> None:
    assert after_predraft(BlockVerifier(), 0.1, 1, 8, 10_000, replay) > 1e-3


class AcceptsTooMuch(BlockVerifier):
    """Acceptance probability a tenth too high."""

    def judge(self, comparison: DraftTargetGap, uniform: torch.Tensor) -> AcceptedPrefix:
        return super().judge(comparison, uniform / 1.1)


class AcceptsEverything(BlockVerifier):
    def judge(self, comparison: DraftTargetGap, uniform: torch.Tensor) -> AcceptedPrefix:
        return AcceptedPrefix(comparison.length, torch.zeros(len(uniform), dtype=torch.float64))


@pytest.mark.parametrize("shift", [0.1, 0.5])
@pytest.mark.parametrize("wrong", [AcceptsTooMuch, AcceptsEverything])
def test_wrong_verification_of_a_predraft_is_noticed(wrong: type[Verifier], shift: float) -> None:
    assert after_predraft(wrong(), shift, 1, 8, 10_000) < 1e-9


def test_drafted_noises_used_again_after_a_rejection_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What block verification has looked at is no longer fresh."""
    scheduler, process = ddpm(8)
    target, sampler = mixture(scheduler, 1), SpeculativeSampler(process, window=7)
    noise, generator = chains(10_000, 1)
    guess = torch.zeros(10_000, 1)
    drafted = sampler.predraft(target, noise, guess, generator)

    class Stale(ChainGenerators):
        def window_noise(self, lengths, event, chains):  # type: ignore[no-untyped-def]
            drawn = super().window_noise(lengths, event, chains)
            for row, (chain, length) in enumerate(zip(chains, lengths, strict=True)):
                drawn[row, :length] = drafted.noise[7 - length : 7, chain]
            return drawn

    monkeypatch.setattr(sampler_call, "ChainGenerators", Stale)
    call = {"noise": drafted.start, "generator": generator, "predraft": drafted}
    assert smallest_p(sampler, target, guess, guess + 0.5, **call) < 1e-9


def test_a_condition_that_depends_on_the_predraft_is_noticed() -> None:
    """Why a pre-draft must not be looked at: here the true condition follows the drafted noise."""
    scheduler, process = ddpm(8)
    target, sampler = mixture(scheduler, 1), SpeculativeSampler(process, window=6)
    noise, generator = chains(10_000, 1)
    guess = torch.zeros(10_000, 1)
    drafted = sampler.predraft(target, noise, guess, generator)
    call = {"noise": drafted.start, "generator": generator, "predraft": drafted}
    assert smallest_p(sampler, target, guess, 0.2 * drafted.noise[4].sign(), **call) < 1e-9


def test_a_predraft_is_an_exact_sample_with_its_noises() -> None:
    scheduler, process = ddpm(20)
    target, sampler = mixture(scheduler, 2), SpeculativeSampler(process, window=6)
    drafted = sampler.predraft(target, *_call(5_000))
    assert drafted.num_steps == 20 and drafted.states.shape == (21, 5_000, 2)
    noisy = drafted.noise[:-1]
    assert (drafted.noise[-1] == 0).all(), "the last step has none"
    assert abs(noisy.mean()) < 0.01 and abs(noisy.var() - 1) < 0.01
    a, b, sigma = (c.view(-1, 1, 1) for c in (process.a, process.b, process.sigma))
    rebuilt = a * drafted.states[:-1] + b * drafted.x0 + sigma * drafted.noise
    torch.testing.assert_close(rebuilt, drafted.states[1:])


def test_a_predraft_under_the_true_condition_is_kept_whole_in_one_pass() -> None:
    scheduler, process = ddpm(100)
    target, sampler = mixture(scheduler, 4), SpeculativeSampler(process)
    noise, generator = chains(16, 4)
    drafted = sampler.predraft(target, noise, generator=generator)
    result = sampler(target, drafted.start, generator=generator, predraft=drafted, record=True)
    assert result.replayed is not None and (result.replayed == 99).all() and (result.passes == 1).all()
    assert result.trajectory is not None
    torch.testing.assert_close(result.trajectory, drafted.states)
    limited = SpeculativeSampler(process, replay=10)(target, drafted.start, generator=generator, predraft=drafted)
    assert limited.replayed is not None and (limited.replayed == 10).all()
    assert limited.proposed is not None and (limited.proposed[0] == 10).all()
    assert sampler(target, noise, generator=generator).replayed is None


def test_the_nearer_the_condition_the_fewer_passes() -> None:
    scheduler, process = ddpm(100)
    target, sampler = mixture(scheduler, 8), SpeculativeSampler(process)
    means = []
    for shift in (0.003, 0.03, 0.3):
        noise, generator = chains(64, 8)
        drafted = sampler.predraft(target, noise, torch.zeros(64, 1), generator)
        result = sampler(target, noise, torch.full((64, 1), shift), generator, predraft=drafted)
        means.append(result.passes.double().mean())
    plain = sampler(target, *_call(64, 8)).passes.double().mean()
    assert means[0] < means[1] < means[2] < plain + 2 and means[0] < plain / 2


def test_a_chain_does_not_depend_on_its_neighbours() -> None:
    scheduler, process = ddpm(30)
    target, sampler = mixture(scheduler, 3), SpeculativeSampler(process, window=8)
    noise, _ = chains(4, 3)
    drafted = sampler.predraft(target, noise, None, _generators(range(4)))
    cond = torch.full((4, 1), 0.1)
    together = sampler(target, noise, cond, _generators(range(10, 14)), predraft=drafted)
    alone = PreDraft(drafted.states[:, 2:3], drafted.x0[:, 2:3], drafted.noise[:, 2:3])
    apart = sampler(target, noise[2:3], cond[:1], _generators([12]), predraft=alone)
    torch.testing.assert_close(apart.sample, together.sample[2:3], rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    scheduler, process = ddpm(10)
    target, sampler = mixture(scheduler, 3), SpeculativeSampler(process)
    noise, generator = chains(4, 3)
    drafted = sampler.predraft(target, noise, generator=generator)
    with pytest.raises(ValueError, match="has 10 steps and the sampler's process 20"):
        SpeculativeSampler(ddpm(20)[1])(target, noise, predraft=drafted)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 3\)"):
        sampler(target, noise[:2], predraft=drafted)
    with pytest.raises(ValueError, match="not what the pre-draft started from"):
        sampler(target, torch.zeros_like(noise), predraft=drafted)
    with pytest.raises(ValueError, match="noise of the same dtype"):
        sampler(target, noise.float(), predraft=drafted)
    with pytest.raises(ValueError, match=r"expected \(K \+ 1, B"):
        PreDraft(drafted.states[1:], drafted.x0, drafted.noise)
    with pytest.raises(ValueError, match="record=True"):
        PreDraft.of(process, sampler(target, noise))
    with pytest.raises(ValueError, match="replay=0"):
        SpeculativeSampler(process, replay=0)


def _generators(seeds: object) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]  # type: ignore[attr-defined]


def _call(batch: int, dim: int = 2) -> tuple[torch.Tensor, None, torch.Generator]:
    noise, generator = chains(batch, dim)
    return noise, None, generator
