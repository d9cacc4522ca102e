"""Continuous batching: whoever joins and leaves, an answer is what it is alone."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from sampler_kinds import SAMPLER_KINDS
from serving_fakes import SPEC, observation, running, tiny_policy, whole

from specpolicy import samplers as factories
from specpolicy.control.inference import EpisodeState, InferenceKind, InferenceRequest, InferenceResult
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.serving.batching import BatchedPolicy, Batcher, Job
from specpolicy.serving.client import Client
from specpolicy.serving.continuous import ContinuousBatch, why_not_continuous
from specpolicy.speculative.compiled.sampler import CompiledChain
from specpolicy.speculative.denoiser import PreparedCondition, concatenate_rows

TO_ROUNDING = 1e-5
"""Only the rounding of batched matrix products may differ."""


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return tiny_policy()


def make_engine(policy: DiffusionPolicy, name: str) -> BatchedPolicy:
    if name.startswith("ddim"):
        return BatchedPolicy(policy, factories.ddim(policy.scheduler, 5, eta=0.0 if name == "ddim" else 0.7))
    return BatchedPolicy(policy, SAMPLER_KINDS[name](factories.make_process(policy, 20)))


@pytest.fixture(params=[*SAMPLER_KINDS, "ddim", "ddim with noise"])
def engine(request: pytest.FixtureRequest, policy: DiffusionPolicy) -> BatchedPolicy:
    return make_engine(policy, request.param)


def job(seed: int, scale: float = 1.0) -> Job:
    numbers = np.random.default_rng(seed)
    window = {
        name: scale * numbers.standard_normal((SPEC.horizon, dim)).astype(np.float32) for name, dim in SPEC.keys.items()
    }
    return whole(window, seed)


def played(engine: BatchedPolicy, arrivals: dict[int, list[Job]]) -> dict[int, InferenceResult]:
    """Results of jobs that join before the evaluation of a number; they are called by their order."""
    batch, found, key = ContinuousBatch(engine), {}, 0
    turn = 0
    while turn <= max(arrivals) or len(batch):
        for each in arrivals.get(turn, []):
            batch.join(key, each)
            key += 1
        found.update(batch.advance())
        turn += 1
        assert turn < 1000
    return found


def assert_same(found: InferenceResult, wanted: InferenceResult) -> None:
    assert (found.error, found.passes, found.evaluations) == (wanted.error, wanted.passes, wanted.evaluations)
    assert found.acceptance == wanted.acceptance
    if wanted.actions is not None:
        np.testing.assert_allclose(found.actions, wanted.actions, atol=TO_ROUNDING)


def test_who_is_alone_gets_bit_for_bit_what_the_engine_says(engine: BatchedPolicy) -> None:
    found, (wanted,) = played(engine, {0: [job(3)]})[0], engine.run([job(3)])
    if getattr(engine.sampler, "step_arguments", {}) != {"eta": 0.0}:  # DDIM's steps are made in NumPy
        np.testing.assert_array_equal(found.actions, wanted.actions)
    assert_same(found, wanted)


def test_answers_do_not_depend_on_who_joins_and_leaves(engine: BatchedPolicy) -> None:
    """One before each of the first evaluations, two at once, and one for the last who is still there."""
    arrivals = {0: [job(0)], 1: [job(1)], 2: [job(2), job(3)], 4: [job(4)], 7: [job(5)]}
    found = played(engine, arrivals)
    for seed in range(6):
        assert_same(found[seed], engine.run([job(seed)])[0])


def test_a_late_one_shares_the_evaluations_of_those_under_way(engine: BatchedPolicy) -> None:
    """As many evaluations as the longest stretch, not as the sum; a batch of whole chunks would wait."""
    network, rows = engine.policy.network.forward_from, []

    def counted(x: Any, *rest: Any) -> Any:
        rows.append(len(x))
        return network(x, *rest)

    first, second = (engine.run([job(seed)])[0].passes for seed in (0, 1))
    assert first is not None and second is not None
    engine.policy.network.forward_from = counted
    try:
        played(engine, {0: [job(0)], 1: [job(1)]})
    finally:
        del engine.policy.network.forward_from
    assert len(rows) == max(first, 1 + second)


def test_streams_go_on_as_alone(engine: BatchedPolicy) -> None:
    """The second chunk of an episode, after a first one that was shared."""
    shared, single = EpisodeState.start(5), EpisodeState.start(5)
    request = job(5)[1]
    for other in (1, 2):
        found = played(engine, {0: [job(other)], 1: [(shared, request)]})[1]
        assert_same(found, engine.run([(single, request)])[0])
    assert torch.equal(shared.generator.get_state(), single.generator.get_state())


def test_faults_are_the_culprits_alone(engine: BatchedPolicy) -> None:
    """Finite, but so large that the network overflows; its stream is set back as in a batch."""
    broken = job(2, scale=1e38)
    before = broken[0].generator.get_state()
    found = played(engine, {0: [job(1)], 1: [broken], 2: [job(3)]})
    assert "denoiser returned NaN or infinity" in (found[1].error or "")
    assert torch.equal(broken[0].generator.get_state(), before)
    for key, seed in ((0, 1), (2, 3)):
        assert_same(found[key], engine.run([job(seed)])[0])


def test_a_network_that_raises_is_asked_for_each_alone(policy: DiffusionPolicy) -> None:
    class Poisoned(DiffusionPolicy):
        def forward(self, x: Any, timestep: Any, cond: Any) -> Any:
            seen = cond.raw if isinstance(cond, PreparedCondition) else cond
            if bool((seen.abs() > 50).any()):
                raise RuntimeError("out of memory")
            return super().forward(x, timestep, cond)

    poisoned = Poisoned.__new__(Poisoned)
    poisoned.__dict__.update(policy.__dict__)
    engine = make_engine(poisoned, "free")
    found = played(engine, {0: [job(1), job(2, scale=1e3)], 1: [job(3)]})
    assert "failed with RuntimeError" in (found[1].error or "")
    for key, seed in ((0, 1), (2, 3)):
        assert_same(found[key], make_engine(policy, "free").run([job(seed)])[0])


def test_pre_drafts_go_beside_whole_chunks(policy: DiffusionPolicy) -> None:
    engine = make_engine(policy, "guess")
    states = [EpisodeState.start(7), EpisodeState.start(7)]
    window, true = job(7)[1].window, job(8)[1].window
    for kind, seen in ((InferenceKind.DRAFT, window), (InferenceKind.FINISH, true)):
        found = played(engine, {0: [job(1)], 1: [(states[0], InferenceRequest(kind, seen))]})[1]
        assert_same(found, engine.run([(states[1], InferenceRequest(kind, seen))])[0])


def test_requests_can_be_given_up(policy: DiffusionPolicy) -> None:
    batch = ContinuousBatch(make_engine(policy, "sequential"))
    for seed in range(3):
        batch.join(seed, job(seed))
        batch.advance()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert sorted(batch.abandon()) == [0, 1, 2] and not len(batch)
    batch.join(3, job(3))  # the threads of those given up are free
    assert batch.advance() == [] and batch.abandon() == [3]


def test_samplers_that_cannot_be_suspended_are_refused(policy: DiffusionPolicy) -> None:
    engine = BatchedPolicy(policy, CompiledChain(factories.make_process(policy, 20), exact=True, backend="plain"))
    assert "CompiledChain cannot be suspended" in (why_not_continuous(engine) or "")
    with pytest.raises(ValueError, match="waits for the batch"):
        ContinuousBatch(engine)


def test_conditions_are_joined_in_their_form() -> None:
    parts = [{"a": torch.full((n, 2), n), "b": (torch.ones(n, 1), None)} for n in (1, 2)]
    joined = concatenate_rows(parts)
    assert joined["a"][:, 0].tolist() == [1, 2, 2] and joined["b"][0].shape == (3, 1) and joined["b"][1] is None
    prepared = concatenate_rows([PreparedCondition(torch.ones(2, 1), torch.zeros(2, 3))] * 2)
    assert isinstance(prepared, PreparedCondition) and prepared.rows.shape == (4, 3)
    with pytest.raises(ValueError, match="kinds"):
        concatenate_rows([torch.ones(1), None])
    with pytest.raises(ValueError, match="keys"):
        concatenate_rows([{"a": torch.ones(1)}, {"b": torch.ones(1)}])


# ---- behind the queue


class Rounds:
    """Jobs are numbers of evaluations; each waits at a gate before it is made."""

    def __init__(self) -> None:
        self.left: dict[Any, int] = {}
        self.companies: list[int] = []
        self.gate = threading.Semaphore(0)
        self.broken = False

    def __len__(self) -> int:
        return len(self.left)

    def join(self, key: Any, job: Any) -> None:
        self.left[key] = job

    def advance(self) -> list[tuple[Any, InferenceResult]]:
        self.gate.acquire()
        if self.broken:
            raise RuntimeError("secret detail")
        self.companies.append(len(self.left))
        self.left = {key: left - 1 for key, left in self.left.items()}
        over = [key for key, left in self.left.items() if left == 0]
        for key in over:
            del self.left[key]
        return [(key, InferenceResult(passes=len(self.companies))) for key in over]

    def abandon(self) -> list[Any]:
        keys, self.left = list(self.left), {}
        return keys


def scene(play: Any, most: int = 3) -> None:
    async def run() -> None:
        rounds = Rounds()
        batcher = Batcher(lambda jobs: [], most, 60.0, lambda: 50, rounds)
        batcher.start()
        try:
            await asyncio.wait_for(play(rounds, batcher), 30)
        finally:
            for _ in range(100):
                rounds.gate.release()
            await batcher.stop()

    asyncio.run(run())


async def until(holds: Any) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def test_a_job_joins_at_the_next_round_and_leaves_when_it_is_done() -> None:
    async def play(rounds: Rounds, batcher: Batcher) -> None:
        long = batcher.submit(4)  # type: ignore[arg-type]
        await until(lambda: len(rounds) == 1)  # it has not waited for others
        short = batcher.submit(2)  # type: ignore[arg-type]
        for _ in range(3):
            rounds.gate.release()
        assert (await short).result.passes == 3 and not long.done()
        rounds.gate.release()
        done = await long
        assert rounds.companies == [1, 2, 2, 1]
        assert done.batch == 2 and done.queue_ms > 0 and done.infer_ms > 0

    scene(play)


def test_no_more_than_the_most_are_under_way() -> None:
    async def play(rounds: Rounds, batcher: Batcher) -> None:
        jobs = [batcher.submit(2) for _ in range(7)]  # type: ignore[arg-type]
        for _ in range(6):
            rounds.gate.release()
        await asyncio.gather(*jobs)
        assert rounds.companies == [3, 3, 3, 3, 1, 1]

    scene(play)


def test_one_whom_nobody_waits_for_does_not_join() -> None:
    async def play(rounds: Rounds, batcher: Batcher) -> None:
        first = batcher.submit(2)  # type: ignore[arg-type]
        await until(lambda: len(rounds) == 1)
        gone, stays = batcher.submit(1), batcher.submit(1)  # type: ignore[arg-type]
        gone.cancel()
        for _ in range(2):
            rounds.gate.release()
        await asyncio.gather(first, stays)
        assert rounds.companies == [1, 2]

    scene(play)


def test_rounds_that_break_answer_everyone_and_go_on() -> None:
    async def play(rounds: Rounds, batcher: Batcher) -> None:
        jobs = [batcher.submit(2) for _ in range(2)]  # type: ignore[arg-type]
        await until(lambda: len(rounds) == 2)
        rounds.broken = True
        rounds.gate.release()
        for done in await asyncio.gather(*jobs):
            assert "failed with RuntimeError; the server's log" in (done.result.error or "")
        rounds.broken = False
        rounds.gate.release()
        assert (await batcher.submit(1)).result.error is None  # type: ignore[arg-type]

    scene(play)


def test_a_server_answers_robots_as_each_would_be_answered_alone(policy: DiffusionPolicy) -> None:
    engine = make_engine(policy, "guess")
    answers: dict[int, list[Any]] = {}

    def robot(url: str, seed: int) -> None:
        with Client(url, timeout_s=30) as client:
            client.reset(seed=seed)
            found = []
            for turn in range(4):
                time.sleep(0.001 * seed)
                found.append(client.infer(observation(0.1 * turn)).actions)
            answers[seed] = found

    with running(engine, rounds=ContinuousBatch(engine)) as server:
        robots = [threading.Thread(target=robot, args=(server.url, seed)) for seed in range(5)]
        for each in robots:
            each.start()
        for each in robots:
            each.join(60)
        together = dict(answers)
        for seed in range(5):
            robot(server.url, seed)
    assert sorted(together) == list(range(5))
    for seed, found in together.items():
        np.testing.assert_allclose(found, answers[seed], atol=TO_ROUNDING)
