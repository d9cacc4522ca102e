"""Sampling for several sessions at once: nobody's answer depends on who else asks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from serving_fakes import SPEC, tiny_policy

from specpolicy import BlockVerifier, DenoiserError, FreeDrafter
from specpolicy import samplers as factories
from specpolicy.policies.diffusion_policy import DiffusionPolicy, Sampler
from specpolicy.serving.batching import Answer, BatchedPolicy, Job


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return tiny_policy()


@pytest.fixture(params=["speculative", "sequential", "ddim"])
def engine(request: pytest.FixtureRequest, policy: DiffusionPolicy) -> BatchedPolicy:
    scheduler = policy.scheduler
    samplers: dict[str, Sampler] = {
        "speculative": factories.speculative(scheduler, 20, FreeDrafter(), BlockVerifier(), 6),
        "sequential": factories.sequential(scheduler, 20),
        "ddim": factories.ddim(scheduler, 5),
    }
    return BatchedPolicy(policy, samplers[request.param])


def job(engine: BatchedPolicy, seed: int, scale: float = 1.0) -> Job:
    numbers = np.random.default_rng(seed)
    observation = {
        name: scale * numbers.standard_normal((SPEC.horizon, dim)).astype(np.float32) for name, dim in SPEC.keys.items()
    }
    return Job(observation, engine.stream(seed))


def answers(engine: BatchedPolicy, seeds: list[int]) -> list[Answer]:
    found = engine.run([job(engine, seed) for seed in seeds])
    assert all(isinstance(answer, Answer) for answer in found), found
    return [answer for answer in found if isinstance(answer, Answer)]


def test_an_answer_is_what_the_policy_itself_says(engine: BatchedPolicy) -> None:
    [answer] = answers(engine, [3])
    observation = {name: part[None] for name, part in job(engine, 3).observation.items()}
    chunk = engine.policy.predict_action(observation, engine.sampler, [torch.Generator().manual_seed(3)])
    np.testing.assert_array_equal(answer.actions, chunk.actions[0])
    assert answer.actions.shape == (4, 3) and answer.passes == int(chunk.result.passes[0])
    if answer.acceptance is None:
        assert np.isnan(chunk.result.acceptance)
    else:
        assert answer.acceptance == pytest.approx(chunk.result.acceptance)


def test_answers_do_not_depend_on_the_batch(engine: BatchedPolicy) -> None:
    seeds = list(range(7))
    alone = [answers(engine, [seed])[0] for seed in seeds]
    for company in (seeds, seeds[::-1], seeds[2:5]):
        for seed, answer in zip(company, answers(engine, company), strict=True):
            assert (answer.passes, answer.acceptance) == (alone[seed].passes, alone[seed].acceptance)
            # only the rounding of batched matrix products may differ
            np.testing.assert_allclose(answer.actions, alone[seed].actions, atol=1e-5)


def test_a_stream_goes_on_from_answer_to_answer(engine: BatchedPolicy) -> None:
    same = job(engine, 1)
    [first], [second] = engine.run([same]), engine.run([same])
    assert isinstance(first, Answer) and isinstance(second, Answer)
    assert not np.allclose(first.actions, second.actions)


def test_one_job_that_fails_fails_alone(engine: BatchedPolicy) -> None:
    """Finite, but so large that the network overflows."""
    good, bad, other = job(engine, 1), job(engine, 2, scale=1e38), job(engine, 3)
    first, failed, second = engine.run([good, bad, other])
    assert isinstance(failed, DenoiserError)
    for seed, answer in ((1, first), (3, second)):
        assert isinstance(answer, Answer)
        np.testing.assert_array_equal(answer.actions, answers(engine, [seed])[0].actions)


def test_the_description_says_whether_the_law_is_kept(engine: BatchedPolicy) -> None:
    described = engine.describe()
    assert described["exact"] == ("DDIM" not in described["sampler"])
    assert described["observations"] == SPEC.keys and described["n_action_steps"] == 4
