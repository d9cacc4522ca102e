"""Sampling for several sessions at once: nobody's answer depends on who else asks."""

from __future__ import annotations

import numpy as np
import pytest
from serving_fakes import SPEC, tiny_policy, whole

from specpolicy import BlockVerifier, FreeDrafter
from specpolicy import samplers as factories
from specpolicy.control.inference import EpisodeState, InferenceResult, PolicyRunner, episode_generator
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.serving.batching import BatchedPolicy, Job
from specpolicy.speculative.sampler_call import Sampler


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


def job(seed: int, scale: float = 1.0) -> Job:
    numbers = np.random.default_rng(seed)
    window = {
        name: scale * numbers.standard_normal((SPEC.horizon, dim)).astype(np.float32) for name, dim in SPEC.keys.items()
    }
    return whole(window, seed)


def results(engine: BatchedPolicy, seeds: list[int]) -> list[InferenceResult]:
    found = engine.run([job(seed) for seed in seeds])
    assert all(result.error is None for result in found), found
    return found


def test_an_answer_is_what_the_policy_itself_says(engine: BatchedPolicy) -> None:
    [result] = results(engine, [3])
    observation = {name: part[None] for name, part in job(3)[1].window.items()}
    chunk = engine.policy.predict_action(observation, engine.sampler, [episode_generator(3)])
    assert result.actions is not None and result.actions.dtype == np.float32
    np.testing.assert_array_equal(result.actions, chunk.actions[0])
    assert result.actions.shape == (4, 3) and result.passes == int(chunk.result.passes[0])
    if result.acceptance is None:
        assert np.isnan(chunk.result.acceptance)
    else:
        assert result.acceptance == pytest.approx(chunk.result.acceptance)


def test_a_seed_means_the_same_episode_as_in_a_control_loop(engine: BatchedPolicy) -> None:
    runner = PolicyRunner(engine.policy, engine.sampler)
    runner.reset(7, 2)
    state = EpisodeState.start(7, 2)
    for step in range(3):
        request = job(step)[1]
        [ours], theirs = engine.run([(state, request)]), runner.infer(request)
        assert ours.actions is not None and theirs.actions is not None
        np.testing.assert_array_equal(ours.actions, theirs.actions[:4])


def test_answers_do_not_depend_on_the_batch(engine: BatchedPolicy) -> None:
    seeds = list(range(7))
    alone = [results(engine, [seed])[0] for seed in seeds]
    for batch in (seeds, seeds[::-1], seeds[2:5]):
        for seed, result in zip(batch, results(engine, batch), strict=True):
            assert (result.passes, result.acceptance) == (alone[seed].passes, alone[seed].acceptance)
            # only the rounding of batched matrix products may differ
            np.testing.assert_allclose(result.actions, alone[seed].actions, atol=1e-5)


def test_a_stream_goes_on_from_answer_to_answer(engine: BatchedPolicy) -> None:
    same = job(1)
    [first], [second] = engine.run([same]), engine.run([same])
    assert first.actions is not None and second.actions is not None
    assert not np.allclose(first.actions, second.actions)


def test_one_job_that_fails_fails_alone(engine: BatchedPolicy) -> None:
    """Finite, but so large that the network overflows."""
    first, failed, second = engine.run([job(1), job(2, scale=1e38), job(3)])
    assert failed.error is not None and "denoiser returned NaN or infinity" in failed.error
    for seed, result in ((1, first), (3, second)):
        np.testing.assert_array_equal(result.actions, results(engine, [seed])[0].actions)


def test_the_description_says_whether_the_sampler_is_exact(engine: BatchedPolicy) -> None:
    described = engine.describe()
    assert described["exact"] == ("DDIM" not in described["sampler"])
    assert described["observations"] == SPEC.keys and described["n_action_steps"] == 4
